"""Turns clicks into point labels, so that the same stages train on points and on scribbles.

    python -m tools.points --clicks clicks.json --images DATA_ROOT/JPEGImages --out DATA_ROOT/points

The JSON holds {image name: [{"x": 120, "y": 80, "cls": 15, "rank": 0}, ...]}: pixel coordinates, a class id or name, and the
rank of the click in its image. Writes palette PNGs, 255 = unlabelled, with a dot per click. Where dots overlap, the lower rank
wins. A click outside the image moves to the nearest pixel inside.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt

from command_line import parse
from datasets import class_names
from datasets.drawing.strokes import line
from datasets.files import UNLABELLED, read_image, write_label
from datasets.folder_layout import images_below
from datasets.index import check_name, collect, without_suffix
from engine.provenance import open_output_folder
from errors import UserError, run
from tools.batch import BatchConfig, process


@dataclass(kw_only=True)
class PointsConfig(BatchConfig):
    """Label PNGs from clicks."""

    clicks: str
    """JSON file of clicks"""
    images: str
    """folder of the images; a label gets the size of its image"""
    out: str
    """folder for the label PNGs"""
    classes: str = "voc"
    """voc, context, cityscapes, coco, ade20k, acdc, camvid, or a text file of class names in id order"""
    width: PositiveInt = 3
    """diameter of a dot, pixels"""


def main() -> int:
    """Runs the command line above. Returns the exit code, 1 if an image failed. Raises UserError for wrong arguments."""
    config = parse(PointsConfig, __doc__)
    classes = class_names(config.classes)
    problems: list[str] = []
    clicks = read_clicks(Path(config.clicks), problems)
    images = images_below(Path(config.images))
    if not images:
        raise UserError(f"--images {config.images}: no images in it")
    out = Path(config.out)
    open_output_folder(out / "points.json", {"class_names": classes} | config.settings())
    items = {name: (images.get(name), clicks_of) for name, clicks_of in clicks.items()}
    work = partial(write, out, classes, config.width)
    return process(work, items, lambda name: (out / f"{name}.png").is_file(), config, "points", problems)[1]


def read_clicks(file: Path, problems: list[str]) -> dict[str, list]:
    """Reads the clicks by image name without suffix. Messages about bad or repeated names go into `problems`. Raises UserError
    for another format."""
    try:
        clicks = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(clicks, dict):
        raise UserError(f"{file}: {{image name: [click, ...]}} is expected, but the file holds a {type(clicks).__name__}")
    found: dict[str, list] = {}
    for name in collect(lambda name: check_name(name, file), clicks, problems):
        bare = without_suffix(name)
        if bare in found:
            problems.append(f"{file}: {name!r} is there already with another suffix or none: merge their clicks")
        found.setdefault(bare, clicks[name])
    return found


def write(out: Path, classes: tuple[str, ...], width: int, name: str, item: tuple[Path | None, list]) -> None:
    """Writes the label of one image. Raises UserError if the image is missing or a click makes no sense."""
    image, clicks = item
    if image is None:
        raise UserError("no image with this name in --images")
    write_label(out / f"{name}.png", point_label(clicks, classes, width, read_image(image).shape[:2]))


def point_label(clicks: list, classes: tuple[str, ...], width: int, shape: tuple[int, int]) -> np.ndarray:
    """Draws clicks as a label map (H, W) uint8, 255 = unlabelled. Raises UserError for a bad click."""
    label = np.full(shape, UNLABELLED, np.uint8)
    try:
        clicks = [(float(click["x"]), float(click["y"]), click["cls"], float(click.get("rank", 0))) for click in clicks]
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f'a click has "x", "y", "cls" and perhaps "rank" ({type(error).__name__}: {error})') from error
    for x, y, number, _ in sorted(clicks, key=lambda click: -click[3]):  # the lowest rank is drawn last
        number = classes.index(number) if number in classes else number
        if type(number) is not int or not 0 <= number < len(classes):
            raise UserError(f"the class {number!r} is none of the {len(classes)} classes; give an id from 0, or a name")
        if not np.isfinite((x, y)).all():
            raise UserError(f"a click at ({x}, {y}): finite numbers are expected")
        inside = np.clip((x, y), 0, (shape[1] - 1, shape[0] - 1))
        label[line(shape, inside[None], width)] = number
    return label


if __name__ == "__main__":
    run(main)
