"""Writes tags.json, the classes that each image shows, from label maps.

    python -m tools.tags DATA_ROOT --labels SegmentationClass --splits '[train]'

For experiments: people give tags in seconds without any mask. `tools.prepare` writes tags.json from the annotations of PASCAL
VOC and COCO.
"""

import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt

from command_line import parse
from datasets import open_index
from datasets.drawing.demo import draw_if_missing
from datasets.files import read_label, write_text
from datasets.index import TAGS
from errors import UserError, run


@dataclass
class TagsConfig:
    """The data set and its labels."""

    root: str
    """the data set"""
    _: KW_ONLY
    labels: str = "SegmentationClass"
    """labels: a folder of root, or a path"""
    splits: tuple[str, ...] = ("train",)
    """lists of images"""
    pixels: PositiveInt = 1
    """least number of pixels of a class that becomes a tag"""
    replace: bool = False
    """overwrite an existing tags.json"""


def main() -> int:
    """Runs the command line above and returns the exit code. Raises UserError for missing labels or an existing tags.json."""
    config = parse(TagsConfig, __doc__, positional=True)
    draw_if_missing(config.root)
    file = Path(config.root) / TAGS
    if file.exists() and not config.replace:
        raise UserError(f"{file} is there already: give --replace to overwrite it")
    write_tags(Path(config.root), config.labels, config.splits, config.pixels)
    return 0


def write_tags(root: Path, labels: str, splits: tuple[str, ...], pixels: int = 1) -> None:
    """Writes ROOT/tags.json of the images in `splits`, and prints a line. labels: a folder of root, or a path. pixels: least
    number of pixels of a class that becomes a tag."""
    tags = {}
    for split in splits:
        index = open_index(root, split, labels)
        for name, label in zip(index.names, index.label_files, strict=True):
            counts = np.bincount(read_label(label).reshape(-1), minlength=256)[1 : len(index.classes)]
            tags[name] = [index.classes[1 + number] for number in np.flatnonzero(counts >= pixels)]
    write_text(root / TAGS, json.dumps(tags, indent=0, ensure_ascii=False) + "\n")
    mean = np.mean([len(of_image) for of_image in tags.values()])
    print(f"{root / TAGS}: {len(tags)} images, {mean:.1f} tags an image")


if __name__ == "__main__":
    run(main)
