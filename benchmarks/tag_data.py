"""Draws a data set for experiments with tags: images of one or two objects, as in the demo data, and their tags.json.

    python -m benchmarks.tag_data data/tags

In the demo data, most images show most classes. Such tags say little. Here, more than half of the images show one class.
"""

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from command_line import parse
from datasets.drawing.demo import draw_demo
from errors import UserError, run
from tools.tags import write_tags


@dataclass
class TagDataConfig:
    """The folder and the number of images."""

    root: str
    """folder to draw"""
    train: PositiveInt = 800
    """training images"""
    val: PositiveInt = 100
    """validation images"""
    seed: NonNegativeInt = 1
    """random seed of the images; the demo data have 0"""


def main() -> None:
    """Runs the command line above. Raises UserError if the folder exists."""
    config = parse(TagDataConfig, __doc__, positional=True)
    root = Path(config.root)
    if root.exists():
        raise UserError(f"{root} exists: choose another folder, or delete it")
    draw_demo(root, config.train, config.val, config.seed, objects=(1, 2))
    write_tags(root, "SegmentationClass", ("train", "val"))


if __name__ == "__main__":
    run(main)
