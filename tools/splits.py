"""Lists of labelled and unlabelled images for learning from few labels.

    python -m tools.splits make DATA_ROOT --split train --counts '[46, 92]'
    python -m tools.splits make DATA_ROOT --split train --counts '[3, 7]' --groups 'patient\\d+'     # 3 and 7 patients
    python -m tools.splits folds DATA_ROOT --count 5 --groups 'patient\\d+'                         # for cross-validation
    python -m tools.splits import DATA_ROOT --splits '[train_aug]' --list labeled.txt --out splits/labelled.txt
    python -m tools.splits import DATA_ROOT --splits '[train, val]' --list patients.txt --groups 'patient\\d+' --out test.txt

`make` writes OUT/labelled_46.txt and OUT/unlabelled_46.txt for each count, all from one random order: a shorter labelled list
is the beginning of a longer one. Images that show a new class come first, so that a list soon covers all classes. All images
need a label, which shows their classes.
`folds` writes OUT/fold1_train.txt and OUT/fold1_val.txt, and so on, by the order of the names.
`import` writes a published list (one or two columns of paths) with the names of the data set. With --groups, a line stands for
all images of its group: a list of patients becomes a list of their slices.
"""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from command_line import parse_command
from datasets import open_index
from datasets.drawing.demo import draw_if_missing
from datasets.files import read_label, write_text
from datasets.index import Index, group_names, natural, read_lines, without_suffix
from datasets.segmentation import present_ids
from errors import UserError, run


@dataclass
class MakeConfig:
    """Random lists of labelled and unlabelled images, which cover all classes."""

    root: str
    """the data set"""
    _: KW_ONLY
    counts: tuple[PositiveInt, ...]
    """number of labelled images (with groups: of groups) in each list"""
    split: str = "train"
    """list of images to divide"""
    labels: str = "SegmentationClass"
    """labels that show which classes an image has: a folder of root, or a path"""
    groups: str | None = None
    """regular expression; images whose names match with the same text stay together, such as the slices of a patient"""
    seed: NonNegativeInt = 0
    """random seed of the order"""
    out: str = "splits"
    """folder to write: a folder of root, or a path with a slash"""


@dataclass
class FoldsConfig:
    """Lists for cross-validation: each fold is once the validation list, and the other folds are the training list."""

    root: str
    """the data set"""
    _: KW_ONLY
    count: PositiveInt = 5
    """number of folds"""
    splits: tuple[str, ...] = ("train", "val")
    """lists of images to divide, together"""
    groups: str | None = None
    """regular expression; images whose names match with the same text stay together, such as the slices of a patient"""
    out: str = "splits"
    """folder to write: a folder of root, or a path with a slash"""


@dataclass
class ImportConfig:
    """A published list, in the names of the data set."""

    root: str
    """the data set"""
    _: KW_ONLY
    list: str
    """text file, a path per line; a second column (the label's path) is ignored"""
    out: str
    """text file to write"""
    splits: tuple[str, ...] = ("train",)
    """lists of images of the data set that the published list is a part of"""
    groups: str | None = None
    """regular expression; a line then stands for all images whose names match with the same text, such as a patient's slices"""


def main() -> int:
    """Runs the command line above and returns the exit code. Raises UserError for missing data or names without an image."""
    command, config = parse_command({"make": MakeConfig, "folds": FoldsConfig, "import": ImportConfig}, __doc__)
    if command == "import":
        file, known = Path(config.list), names_of(config.root, config.splits)
        names = import_groups(file, known, config.groups) if config.groups else import_list(file, known)
        write_list(Path(config.out), names)
        print(f"{config.out}: {len(names)} images")
        return 0
    draw_if_missing(config.root)
    out = Path(config.out)
    out = out if len(out.parts) > 1 else Path(config.root) / out
    if command == "folds":
        names = names_of(config.root, config.splits)
        for number, fold in enumerate(folds(group_names(names, config.groups, "--groups"), config.count), 1):
            held_out = set(fold)
            write_list(out / f"fold{number}_val.txt", fold)
            write_list(out / f"fold{number}_train.txt", [name for name in names if name not in held_out])
            print(f"{out}: fold{number}_val.txt: {len(fold)} images, fold{number}_train.txt: {len(names) - len(fold)}")
        return 0
    index = open_index(config.root, config.split, config.labels)
    groups = group_names(index.names, config.groups, "--groups")
    too_many = [count for count in config.counts if count >= len(groups)]
    if too_many:
        what = "groups" if config.groups else "images"
        raise UserError(f"--counts {too_many[0]}: split {config.split} has {len(groups)} {what}; some must stay unlabelled")
    order = covering_order(groups, classes_of(index), config.seed)
    for count in config.counts:
        chosen = {name for group in order[:count] for name in groups[group]}
        for kind, names in (
            ("labelled", [name for name in index.names if name in chosen]),
            ("unlabelled", [name for name in index.names if name not in chosen]),
        ):
            write_list(out / f"{kind}_{count}.txt", names)
        print(f"{out}: labelled_{count}.txt {len(chosen)} images, unlabelled_{count}.txt {len(index) - len(chosen)}")
    return 0


def names_of(root: str, splits: Iterable[str]) -> list[str]:
    """Returns the names in the splits, each once."""
    return list(dict.fromkeys(name for split in splits for name in open_index(root, split).names))


def folds(groups: dict[str, list[str]], count: int) -> list[list[str]]:
    """Returns `count` lists of names. The groups in the order of their numbers are cut into parts of equal length (with a rest,
    the first parts are longer by one). Raises UserError for fewer than two folds, or more than groups."""
    if not 2 <= count <= len(groups):
        raise UserError(f"--count {count}: at least 2, and at most the {len(groups)} groups of images")
    order = sorted(groups, key=natural)
    return [[name for group in part for name in groups[str(group)]] for part in np.array_split(np.array(order), count)]


def classes_of(index: Index) -> dict[str, set[int]]:
    """Returns name -> the class ids in the image's label."""
    count = len(index.classes)
    shown = (np.flatnonzero(present_ids(read_label(file))[:count]).tolist() for file in index.label_files)
    return {name: set(ids) for name, ids in zip(index.names, shown, strict=True)}


def covering_order(groups: dict[str, list[str]], classes: dict[str, set[int]], seed: int) -> list[str]:
    """Returns the groups in a random order, but groups with a class that no group before them shows come first."""
    shown = {group: set().union(*(classes[name] for name in names)) for group, names in groups.items()}
    names = list(groups)
    drawn = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    covered: set[int] = set()
    first = []
    for group in drawn:
        if shown[group] - covered:
            covered |= shown[group]
            first.append(group)
    return list(dict.fromkeys(first + drawn))


def import_list(file: Path, images: Iterable[str]) -> list[str]:
    """Returns the names in a published list, in its order and each once, as they are in `images`. Folders before a name, the
    suffix and Cityscapes' `_leftImg8bit` do not count. Raises UserError for a line without an image."""
    known = set(images)
    names = []
    for line in _lines_of(file):
        path = without_suffix(line.split()[0]).removesuffix("_leftImg8bit")
        parts = path.split("/")
        found = next((tail for start in range(len(parts)) if (tail := "/".join(parts[start:])) in known), None)
        if found is None:
            raise UserError(f"{file}: {line.split()[0]} is not among the {len(known)} images of --splits")
        names.append(found)
    return list(dict.fromkeys(names))


def import_groups(file: Path, images: Iterable[str], pattern: str) -> list[str]:
    """Returns the images of the groups in a published list, a group per line. The group of a line or an image is the text that
    the regular expression `pattern` matches. Raises UserError for a line without a match, or without an image."""
    known = group_names(images, pattern, "--groups")
    wanted = group_names(_lines_of(file), pattern, "--groups")
    missing = [group for group in wanted if group not in known]
    if missing:
        raise UserError(f"{file}: {missing[0]} has no image in --splits")
    return [name for group in wanted for name in known[group]]


def _lines_of(file: Path) -> list[str]:
    """Returns the lines of a published list. Raises UserError if there is none."""
    lines = read_lines(file)
    if not lines:
        raise UserError(f"{file}: the list is empty")
    return lines


def write_list(file: Path, names: list[str]) -> None:
    """Writes a list of names, one per line."""
    write_text(file, "\n".join(names) + "\n")


if __name__ == "__main__":
    run(main)
