"""Checks a data set before training: every image, label and list of both splits.

    python -m tools.check_dataset DATA_ROOT --labels scribbles
    python -m tools.check_dataset DATA_ROOT --labels tags.json              # training by image tags, without label maps
    python -m tools.check_dataset DATA_ROOT --labels scribbles --convert DATA_ROOT/scribbles_ids    # labels in colours

Prints the number of images, the labelled share, the classes, the agreement with the masks, and a line per problem. Draws a
contact sheet. Exits with code 1 if something would break or silently spoil training.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from command_line import parse
from datasets import open_index
from datasets.check import few_classes, list_problems
from datasets.drawing.demo import draw_if_missing
from datasets.files import PALETTE, UNLABELLED, atomic_write, opened_label, read_image, read_label, write_label
from datasets.index import TAGS, Index, resolve_folder, spread_positions
from datasets.segmentation import read_fitting_label
from engine.pictures import captioned, contact_sheet, overlay, shrunk
from engine.provenance import open_output_folder
from errors import UserError, run
from tools.batch import BatchConfig, parallel, process

AGREEMENT = 0.9  # least share of labelled pixels that agree with the masks; the human scribbles that were checked reach 0.99
COMMON = 0.95  # share of the images from which a tag is common
MOST_PRINTED = 50  # number of problems to print


@dataclass
class CheckConfig(BatchConfig):
    """A data set and its labels."""

    root: str
    """the data set"""
    labels: str = "scribbles"
    """training labels: a folder of root, or a path; or tags.json"""
    truth: str = "SegmentationClass"
    """dense masks: a folder of root, or a path; masks of training images are compared with the labels"""
    train_split: str = "train"
    """list of training images"""
    val_split: str = "val"
    """list of validation images"""
    sheet: str = "runs/check_dataset.png"
    """picture to write: a contact sheet of training images with their labels"""
    pictures: PositiveInt = 24
    """number of images on the contact sheet"""
    convert: str | None = None
    """folder to write the training labels to as class ids, if the labels are in colours"""
    colours: str | None = None
    """for --convert: text file, one class per line in id order, as red, green and blue (0-255); unset: VOC's colours"""
    void: tuple[int, int, int] = (224, 224, 192)
    """for --convert: colour of unlabelled pixels, such as '[255, 255, 255]'; wins over a class of this colour; unset: VOC's"""


@dataclass
class Finding:
    """The result of checking one image and its label."""

    problem: str | None
    counts: np.ndarray
    """(256,) int64: pixels of each id in the label"""
    agreeing: int = 0
    """labelled pixels where the mask has the same class"""
    compared: int = 0
    """labelled pixels where the mask has a class"""


def main() -> int:
    """Runs the command line above. Returns the exit code, 1 if a problem was found. Raises UserError for options that exclude
    each other."""
    config = parse(CheckConfig, __doc__, positional=True)
    draw_if_missing(config.root)
    if config.convert is not None:
        return convert(config, Path(config.convert))
    if config.shard != "1/1":
        raise UserError("--shard requires --convert: the check always reads the whole data set")
    root = Path(config.root)
    problems: list[str] = []
    train = read_split(root, config.train_split, config.labels, problems)
    val = read_split(root, config.val_split, config.truth, problems)
    if train and val:
        problems += list_problems(train, val)
    for split, index, masks in ((config.train_split, train, resolve_folder(root, config.truth)), (config.val_split, val, None)):
        if index and index.labels is None:
            problems += [finding.problem for finding in check_split(index, None, config) if finding.problem]
            print(f"{split} ({root / TAGS}): {tag_summary(index)}")
            problems += tag_problems(index, root / TAGS)
        elif index:
            findings = check_split(index, masks, config)
            problems += [finding.problem for finding in findings if finding.problem]
            total = np.sum([finding.counts for finding in findings], axis=0)
            print(f"{split} ({index.label_files[0].parent}): {summary(findings, total, index.classes)}")
            problems += silent_problems(findings, total, index, index is train)
    for problem in problems[:MOST_PRINTED]:
        print(f"problem: {problem}")
    if len(problems) > MOST_PRINTED:
        print(f"... and {len(problems) - MOST_PRINTED} more")
    print(f"{len(problems)} problems" if problems else "no problems")
    if train:
        draw_sheet(train, config)
    return int(bool(problems))


def read_split(root: Path, split: str, labels: str, problems: list[str]) -> Index | None:
    """Opens a split with label paths that need not exist, or with tags and no label paths. If that fails, adds a line to
    `problems` and returns None."""
    try:
        index = open_index(root, split, problems=problems)
    except UserError as error:
        problems.append(str(error))
        return None
    if labels == TAGS and index.tags is None:
        problems.append(
            f"{root / TAGS} is missing, or lists no image of split {split}: write it by tools.tags or tools.prepare"
        )
        return None
    if labels == TAGS:
        return index
    folder = resolve_folder(root, labels)
    return replace(index, labels=tuple(folder / f"{name}.png" for name in index.names))


def check_split(index: Index, masks: Path | None, config: CheckConfig) -> list[Finding]:
    """Checks every image of a split, and its label if the index has labels. masks: the folder to compare the labels with, or
    None."""
    items = [
        (image, label, masks / f"{name}.png" if masks else None)
        for name, image, label in zip(index.names, index.images, index.labels or [None] * len(index), strict=True)
    ]
    work = partial(check_image, len(index.classes))
    with parallel(config.workers, len(items)) as mapping:
        return list(tqdm(mapping(work, items), "checking", len(items), unit="image", leave=False, disable=None))


def check_image(num_classes: int, item: tuple[Path, Path | None, Path | None]) -> Finding:
    """Checks one image, its label (None: no label) and its mask (None: no comparison)."""
    image_file, label_file, mask_file = item
    nothing = np.zeros(256, np.int64)
    try:
        image = read_image(image_file)
        if label_file is None:
            return Finding(None, nothing)
        label = read_fitting_label(label_file, image, num_classes)
        counts = np.bincount(label.reshape(-1), minlength=256)
        if mask_file is None or not mask_file.is_file():
            return Finding(None, counts)
        mask = read_fitting_label(mask_file, image, num_classes)
    except UserError as error:
        return Finding(str(error), nothing)
    both = (label != UNLABELLED) & (mask != UNLABELLED)
    return Finding(None, counts, int((both & (label == mask)).sum()), int(both.sum()))


def summary(findings: list[Finding], total: np.ndarray, classes: tuple[str, ...]) -> str:
    """Returns lines about a split: images, labelled share, agreement, and the number of labelled images of each class."""
    labelled = total[:UNLABELLED].sum()
    lines = [f"{len(findings)} images, {100 * labelled / max(total.sum(), 1):.2f}% of pixels labelled"]
    compared = sum(finding.compared for finding in findings)
    if compared:
        agreeing = sum(finding.agreeing for finding in findings)
        lines[0] += f", {100 * agreeing / compared:.2f}% of them agree with the masks"
    images_of = np.sum([finding.counts > 0 for finding in findings], axis=0)
    width = max(map(len, classes))
    lines += [
        f"  {number:>3} {name:<{width}} {images:>6} images {100 * pixels / max(labelled, 1):6.2f}% of labelled pixels"
        for number, (name, images, pixels) in enumerate(zip(classes, images_of, total, strict=False))
    ]
    return "\n".join(lines)


def silent_problems(findings: list[Finding], total: np.ndarray, index: Index, is_training: bool) -> list[str]:
    """Returns the problems that would spoil training without an error message."""
    problems = []
    readable = [finding for finding in findings if finding.problem is None]
    present = np.flatnonzero(total[:UNLABELLED])
    folder = index.label_files[0].parent
    if readable and (few := few_classes(set(present.tolist()), index.classes, folder)):
        problems.append(few)
    absent = [name for name, count in zip(index.classes, total, strict=False) if not count]
    if len(present) > 1 and absent and is_training:
        problems.append(f"{folder}: no pixel is labelled {', '.join(absent)}; the network cannot learn a class without labels")
    compared, agreeing = (sum(getattr(finding, name) for finding in findings) for name in ("compared", "agreeing"))
    if compared and agreeing < AGREEMENT * compared:
        problems.append(f"{folder}: only {100 * agreeing / compared:.1f}% of the labelled pixels agree with the masks")
    return problems


def tag_summary(index: Index) -> str:
    """Returns lines about the tags of a split: images, tags an image, and the number of images of each class."""
    tags = tags_of(index)
    counts, width, without = tags.sum(axis=0), max(map(len, index.classes)), int((~tags.any(axis=1)).sum())
    lines = [f"{len(index)} images, {tags.sum(axis=1).mean():.1f} tags an image, {without} images without a tag"]
    lines += [f"  {1 + n:>3} {name:<{width}} {counts[n]:>6} images" for n, name in enumerate(index.classes[1:])]
    common = [name for name, count in zip(index.classes[1:], counts, strict=True) if count >= COMMON * len(index)]
    if common:
        lines.append(f"  note: nearly all images have the tag {', '.join(common)}; a tag of all images teaches nothing")
    return "\n".join(lines)


def tag_problems(index: Index, file: Path) -> list[str]:
    """Returns a message about classes that no image shows, if there are any."""
    counts = tags_of(index).sum(axis=0)
    absent = [name for name, count in zip(index.classes[1:], counts, strict=True) if not count]
    return (
        [f"{file}: no image has the tag {', '.join(absent)}; the network cannot learn a class without tags"] if absent else []
    )


def tags_of(index: Index) -> np.ndarray:
    """Returns the tags of an index with tags, (images, classes - 1) bool."""
    assert index.tags is not None
    return index.tags


def draw_sheet(index: Index, config: CheckConfig) -> None:
    """Draws the contact sheet: readable images of a split with their labels, or with their tags below."""
    tiles = []
    for position in spread_positions(len(index), config.pictures):
        try:
            image = read_image(index.images[position])
            if index.labels is None:
                shown = np.flatnonzero(tags_of(index)[position])
                tiles.append(captioned(shrunk(image), ", ".join(index.classes[1 + number] for number in shown)))
                continue
            label = read_label(index.label_files[position])
        except UserError:  # already listed as a problem
            continue
        if label.shape == image.shape[:2]:
            tiles.append(shrunk(overlay(image, label)))
    if tiles:
        with atomic_write(Path(config.sheet)) as temporary:
            contact_sheet(tiles).save(temporary, "PNG")
        print(f"contact sheet: {config.sheet}")


def convert(config: CheckConfig, out: Path) -> int:
    """Writes the coloured labels of the training split as class ids into `out`. Returns the exit code."""
    colours = read_colours(Path(config.colours)) if config.colours else PALETTE
    train = open_index(config.root, config.train_split, config.labels)
    if config.colours and tuple(config.void) == CheckConfig.void and list(config.void) in colours.tolist():
        raise UserError(f"{config.colours} has {config.void}, VOC's colour of unlabelled pixels: give yours by --void")
    open_output_folder(out / "check_dataset.json", {"labels": config.labels, "colours": config.colours, "void": config.void})
    items = dict(zip(train.names, train.label_files, strict=True))
    number_of = {(int(red), int(green), int(blue)): number for number, (red, green, blue) in enumerate(colours)}
    red, green, blue = config.void
    work = partial(write_ids, out, number_of, (red, green, blue))
    return process(work, items, lambda name: (out / f"{name}.png").is_file(), config, "convert")[1]


def read_colours(file: Path) -> np.ndarray:
    """Reads lines of red, green and blue as (K, 3) int. Raises UserError for other content."""
    try:
        colours = np.loadtxt(file, int, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: lines of three numbers are expected ({error})") from error
    if colours.shape[1] != 3 or len(colours) > UNLABELLED or colours.min() < 0 or colours.max() > 255:
        raise UserError(f"{file}: at most {UNLABELLED} lines of three numbers from 0 to 255 are expected")
    return colours


def write_ids(out: Path, number_of: dict[tuple[int, int, int], int], void: tuple[int, int, int], name: str, path: Path) -> None:
    """Writes one coloured label as class ids. Raises UserError for a colour that is neither `void` nor a class colour."""
    with opened_label(path) as image:
        picture = np.array(image.convert("RGB"))
    colours, where = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    unknown = [colour for colour in map(tuple, colours.tolist()) if colour not in number_of and colour != void]
    if unknown:
        raise UserError(f"{path}: the colour {unknown[0]} belongs to no class; name the colours by --colours and --void")
    ids = np.array([UNLABELLED if colour == void else number_of[colour] for colour in map(tuple, colours.tolist())], np.uint8)
    write_label(out / f"{name}.png", ids[where].reshape(picture.shape[:2]))


if __name__ == "__main__":
    run(main)
