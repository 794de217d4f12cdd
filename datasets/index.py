"""The index of a split, the interface of every data set. voc_layout.py and folder_layout.py read the two layouts on disk."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from errors import UserError

T = TypeVar("T")
S = TypeVar("S")

TAGS = "tags.json"  # {image name: [class, ...]}, in the folder of a data set
SPACING = "spacing.json"  # {volume: [distance of slices, of rows, of columns]} in mm, in the folder of a data set
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Index:
    """A split: image names, one image file and (None: no labels) one label file per name, and class names in id order."""

    names: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...] | None
    classes: tuple[str, ...]
    tags: np.ndarray | None = None
    """(images, classes - 1) bool: the classes, except the first, that each image shows; None: the data set does not say"""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """The label files. Raises ValueError if the index was opened without labels."""
        if self.labels is None:
            raise ValueError("the index was opened without labels")
        return self.labels


def group_names(names: Iterable[str], pattern: str | None, flag: str) -> dict[str, list[str]]:
    """Returns group -> names, in the order of the names. The group of a name is the text that the regular expression `pattern`
    matches in it, such as the patient; without pattern, the name itself. flag: the flag that gives the pattern, for the errors.
    Raises UserError for a bad pattern, or a name without a match."""
    groups: dict[str, list[str]] = {}
    for name in names:
        try:
            match = re.search(pattern, name) if pattern is not None else None
        except re.error as error:
            raise UserError(f"{flag} {pattern}: not a regular expression ({error})") from error
        if pattern is not None and match is None:
            raise UserError(f"{flag} {pattern}: does not match {name}")
        groups.setdefault(match[0] if match else name, []).append(name)
    return groups


def natural(name: str) -> list:
    """Returns a sorting key in which slice_10 follows slice_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def resolve_folder(root: Path, folder: str | Path) -> Path:
    """Returns `folder` as a folder of `root` if it exists there, else as a path. If neither exists, a bare name resolves under
    `root`; anything with a slash is a path."""
    folder = Path(folder)
    inside = root / folder
    return inside if inside.is_dir() or (len(folder.parts) == 1 and not folder.is_dir()) else folder


def spread_positions(length: int, count: int) -> list[int]:
    """Returns at most `count` positions, spread evenly over range(length)."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})


def collect(function: Callable[[T], S], items: Iterable[T], problems: list[str] | None) -> list[S]:
    """Returns `function` of every item. If a list `problems` is given, the message of a UserError goes into the list, and the
    item is left out. Without the list, the UserError is raised."""
    results = []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return results


def split_file(folder: Path, split: str) -> Path:
    """Returns the list file of a split: FOLDER/SPLIT.txt, or `split` itself if it is a path that ends in .txt."""
    return Path(split) if split.endswith(".txt") else folder / f"{split}.txt"


def read_names(list_file: Path, problems: list[str] | None = None) -> list[str]:
    """Reads image names, one per line. Raises UserError for an empty list. A message about a name that leads out of the image
    folder goes into `problems`; without `problems`, it is raised as UserError."""
    names = read_lines(list_file)
    if not names:
        raise UserError(f"{list_file}: the split is empty; write one image name per line")
    return collect(lambda name: check_name(name, list_file), names, problems)


def check_name(name: str, file: Path) -> str:
    """Returns the image name `name`, read from `file`. Raises UserError if the name leads out of the image folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
        raise UserError(f"{file}: the name {name!r} leads out of the image folder; remove it")
    return name


def without_suffix(name: str) -> str:
    """Returns an image name without image suffix."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else name


def label_paths(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Returns FOLDER/NAME.png of every name. Raises UserError if a file is missing."""
    if not folder.is_dir():
        raise UserError(
            f"label folder {folder} not found: make it (docs/data.md) or name another one (SCRIBBLES or MASKS, --data.labels)"
        )
    paths = tuple(folder / f"{name}.png" for name in names)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} not found ({len(missing)} of the split's {len(names)} labels are missing)")
    return paths


def read_tags(root: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> np.ndarray | None:
    """Reads ROOT/tags.json, {name: [class, ...]}, as (names, classes - 1) bool: the classes, except the first, that each image
    shows. Returns None if the file is missing or has none of the images. Raises UserError for wrong content."""
    file = root / TAGS
    if not file.is_file():
        return None
    try:
        tags_of = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(tags_of, dict):
            raise UserError(f"{file}: {{image name: [class, ...]}} is expected")
        if not any(image in tags_of for image in names):
            return None
        rows = [[name in tags_of[image] for name in classes[1:]] for image in names]
        unknown = [tag for image in names for tag in tags_of[image] if tag not in classes]
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: a list of class names is expected for every image; first problem: {error}") from error
    if unknown:
        raise UserError(f"{file}: {unknown[0]} is not one of the classes")
    return np.array(rows, bool)


def find_image(folder: Path, name: str) -> Path:
    """Finds image `name` in `folder`, with any of `IMAGE_SUFFIXES` in small or capital letters. Raises UserError if missing."""
    for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no image with this name (suffixes: {', '.join(IMAGE_SUFFIXES)})")


def read_class_file(file: Path) -> tuple[str, ...]:
    """Reads class names, one per line, in id order. Raises UserError for fewer than 2, more than 255, or repeated names."""
    classes = tuple(read_lines(file))
    if not 2 <= len(classes) <= 255:
        raise UserError(f"{file}: {len(classes)} classes; 2 to 255 lines are expected, one class per line")
    if len(set(classes)) < len(classes):
        raise UserError(f"{file}: {next(name for name in classes if classes.count(name) > 1)} is listed twice")
    return classes


def read_lines(file: Path) -> list[str]:
    """Reads the lines of a text file, without empty lines. Raises UserError if the file cannot be read."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable text file in UTF-8 ({error})") from error
