"""Makes scribbles: from published ones, from dense masks, or thinner scribbles for robustness studies.

    python -m tools.scribbles xml2png       --xml pascal_2012/ --classes voc --out DATA/scribbles
    python -m tools.scribbles scribbles4all --scribbles s4ADE20K --data ade20k --out DATA/scribbles
    python -m tools.scribbles generate      --masks DATA/SegmentationClass --out DATA/scribbles
    python -m tools.scribbles shrink        --scribbles DATA/scribbles --ratio 0.5 --out DATA/scribbles_shrink0.5
    python -m tools.scribbles drop          --scribbles DATA/scribbles --probability 0.5 --out DATA/scribbles_drop0.5

Each command writes palette PNGs, 255 = unlabelled, and its settings in scribbles.json. Existing files are skipped. Unreadable
files do not stop the other files; they are listed at the end (exit code 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from command_line import parse_command
from datasets import class_names
from datasets.drawing.scribbles import draw_scribbles, generator
from datasets.drawing.strokes import drop, shrink
from datasets.files import UNLABELLED, read_label, write_label
from datasets.official.scribbles4all import read_scribbles, scribble_files
from datasets.official.scribblesup import read_annotation
from engine.provenance import open_output_folder
from errors import UserError, run
from tools.batch import BatchConfig, process


@dataclass(kw_only=True)
class Xml2PngConfig(BatchConfig):
    """ScribbleSup annotations (XML) to label PNGs."""

    xml: str
    """folder of annotations NAME.xml"""
    out: str
    """folder for the label PNGs"""
    classes: str = "voc"
    """voc, context, cityscapes, coco, ade20k, acdc, camvid, or a text file of class names in id order"""
    width: PositiveInt = 3
    """width of a stroke, pixels"""


@dataclass(kw_only=True)
class Scribbles4AllConfig(BatchConfig):
    """Scribbles for All (s4Pascal, s4Cityscapes, s4KITTI360, s4ADE20K) to label PNGs, named like tools.prepare's images."""

    scribbles: str
    """folder of the unpacked archives; all scribble maps below it are read"""
    data: Literal["voc", "cityscapes", "kitti360", "ade20k"]
    """the data set whose images have the scribbles"""
    out: str
    """folder for the label PNGs"""


@dataclass(kw_only=True)
class GenerateConfig(BatchConfig):
    """Scribbles drawn from dense masks, as a person would draw them."""

    masks: str
    """folder of dense label PNGs, 255 = void"""
    out: str
    """folder for the scribbles"""
    seed: NonNegativeInt = 0
    """the same seed and image name draw the same strokes; another seed draws other strokes"""
    width: PositiveInt = 3
    """width of a stroke, pixels"""
    smallest: ClosedUnitInterval = 0.001
    """parts of a class under this share of the image get no stroke"""
    most: PositiveInt = 3
    """most strokes in a part; only parts that cover a large share of the image get more than one stroke"""


@dataclass(kw_only=True)
class ShrinkConfig(BatchConfig):
    """The middle part of every stroke."""

    scribbles: str
    """folder of scribble PNGs"""
    out: str
    """folder for the thinner scribbles"""
    ratio: ClosedUnitInterval
    """share of a stroke that stays: 1 = all, 0 = one pixel; a smaller ratio keeps a subset of the pixels of a larger ratio"""


@dataclass(kw_only=True)
class DropConfig(BatchConfig):
    """Whole strokes dropped at random; at least one stroke stays in every image."""

    scribbles: str
    """folder of scribble PNGs"""
    out: str
    """folder for the thinner scribbles"""
    probability: ClosedUnitInterval
    """probability of dropping a stroke; a larger probability keeps a subset of the strokes of a smaller probability"""
    seed: NonNegativeInt = 0
    """another seed drops other strokes"""


COMMANDS = {
    "xml2png": Xml2PngConfig,
    "scribbles4all": Scribbles4AllConfig,
    "generate": GenerateConfig,
    "shrink": ShrinkConfig,
    "drop": DropConfig,
}


def main() -> int:
    """Runs the command line above. Returns the exit code, 1 if a file failed. Raises UserError for wrong arguments."""
    command, config = parse_command(COMMANDS, __doc__)
    made: dict[str, tuple[str, str, Callable]] = {
        "xml2png": ("xml", ".xml", from_xml),
        "scribbles4all": ("scribbles", ".png", from_scribbles4all),
        "generate": ("masks", ".png", from_mask),
        "shrink": ("scribbles", ".png", shrunk),
        "drop": ("scribbles", ".png", dropped),
    }
    source, suffix, make = made[command]
    out = Path(config.out)
    folder = Path(getattr(config, source))
    files = scribble_files(folder, config.data) if command == "scribbles4all" else files_in(folder, suffix)
    ids = {"class_names": class_names(config.classes)} if command == "xml2png" else {}
    open_output_folder(out / "scribbles.json", {"command": command} | ids | config.settings())
    counts, code = process(
        partial(write, make, config, out), files, lambda name: (out / f"{name}.png").is_file(), config, command
    )
    if counts:
        print(shares(np.sum(counts, axis=0)))
    return code


def files_in(folder: Path, suffix: str) -> dict[str, Path]:
    """Returns the files with `suffix` below `folder` by relative path without suffix, sorted. UserError if there is none."""
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(f"*{suffix}"))}
    if not files:
        raise UserError(f"{folder}: no {suffix} files in it" if folder.is_dir() else f"{folder}: no such folder")
    return files


def write(make: Callable, config: BatchConfig, out: Path, name: str, path: Path) -> np.ndarray:
    """Writes the label OUT/NAME.png. Returns the pixels of each id in the label and in its source, (2, 256) int64."""
    label, source = make(config, name, path)
    write_label(out / f"{name}.png", label)
    return np.stack([np.bincount(array.reshape(-1), minlength=256) for array in (label, source)])


def from_xml(config: Xml2PngConfig, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label that an annotation draws, twice: an annotation has no source label."""
    label = read_annotation(path, class_names(config.classes), config.width)
    return label, label


def from_scribbles4all(config: Scribbles4AllConfig, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scribbles with class ids, twice: they have no source label."""
    label = read_scribbles(path, config.data)
    return label, label


def from_mask(config: GenerateConfig, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns scribbles drawn into a mask, and the mask."""
    mask = read_label(path)
    return draw_scribbles(mask, generator(name, config.seed), config.width, config.smallest, config.most), mask


def shrunk(config: ShrinkConfig, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the middle parts of a label's strokes, and the label."""
    scribbles = read_label(path)
    return shrink(scribbles, config.ratio), scribbles


def dropped(config: DropConfig, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label without the dropped strokes, and the label."""
    scribbles = read_label(path)
    return drop(scribbles, config.probability, generator(name, config.seed)), scribbles


def shares(counts: np.ndarray) -> str:
    """Returns lines of labelled shares. counts: (2, 256), pixels of each id in the labels and in their sources."""
    labels, sources = counts
    labelled = labels[:UNLABELLED].sum()
    lines = [
        f"labelled: {100 * labelled / labels.sum():.2f}% of all pixels",
        "id  of its pixels  of all labelled",
    ]
    lines += [
        f"{number:>2}  {100 * labels[number] / sources[number]:12.2f}%  {100 * labels[number] / max(labelled, 1):14.2f}%"
        for number in np.flatnonzero(sources[:UNLABELLED])
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
