"""The interface of every data set: the index of a split. The two layouts on disk are in voc.py and folder.py."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from errors import UserError

T = TypeVar("T")
S = TypeVar("S")

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Index:
    """A split: names, one image and (where there are labels) one label map each, and what the ids in them mean."""

    names: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...] | None
    classes: tuple[str, ...]
    tags: np.ndarray | None = None
    """which classes but the first an image shows, (images, classes - 1) bool, where the data set says so"""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """`labels` of an index that was opened with labels."""
        if self.labels is None:
            raise ValueError("the index was opened without labels")
        return self.labels


def resolve_folder(root: Path, folder: str | Path) -> Path:
    """`folder` as a folder of `root` where it exists there, else as a path of its own; where neither exists, as the one that
    it looks like: a name is in `root`, what has a slash is a path."""
    folder = Path(folder)
    inside = root / folder
    return inside if inside.is_dir() or (len(folder.parts) == 1 and not folder.is_dir()) else folder


def evenly(length: int, count: int) -> list[int]:
    """At most `count` positions spread over range(length)."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})


def collect(function: Callable[[T], S], items: Iterable[T], problems: list[str] | None) -> list[S]:
    """`function` of every item. Where it raises UserError that goes on, or, with a list of `problems`, into it, and the item is
    left out."""
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
    """The list of a split: FOLDER/SPLIT.txt, or `split` itself where it is a path that ends in .txt."""
    return Path(split) if split.endswith(".txt") else folder / f"{split}.txt"


def read_names(list_file: Path, problems: list[str] | None = None) -> list[str]:
    """Image names, one per line; raises UserError if there is none, or (without `problems` to go into) one leads out of the
    image folder."""
    names = read_lines(list_file)
    if not names:
        raise UserError(f"{list_file}: the split is empty; write one image name per line")
    return collect(lambda name: check_name(name, list_file), names, problems)


def check_name(name: str, file: Path) -> str:
    """`name`; raises UserError if this image name, which stands in `file`, leads out of the image folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
        raise UserError(f"{file}: the name {name!r} leads out of the image folder")
    return name


def without_suffix(name: str) -> str:
    """An image's name from its file's, or from its name."""
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else name


def label_paths(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """FOLDER/NAME.png of every name; raises UserError if any is missing."""
    if not folder.is_dir():
        raise UserError(
            f"label folder {folder} not found: make it (docs/data.md), or name another (SCRIBBLES or MASKS, --data.labels)"
        )
    paths = tuple(folder / f"{name}.png" for name in names)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} not found ({len(missing)} of the split's {len(names)} labels are missing)")
    return paths


def read_tags(root: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> np.ndarray | None:
    """Which classes but the first each image shows, (names, classes - 1) bool, by ROOT/tags.json {name: [class, ...]}; None
    where there is no such file, or none of the images is in it. Raises UserError if it does not fit."""
    file = root / "tags.json"
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
        raise UserError(f"{file}: a list of class names is expected for every image; {error} has none") from error
    if unknown:
        raise UserError(f"{file}: {unknown[0]} is not one of the classes")
    return np.array(rows, bool)


def find_image(folder: Path, name: str) -> Path:
    """The image called `name` in `folder`, with whichever of `IMAGE_SUFFIXES` it has, in small or capital letters."""
    for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no image with this name ({', '.join(IMAGE_SUFFIXES)})")


def read_class_file(file: Path) -> tuple[str, ...]:
    """The class names in a text file, one per line, in id order; raises UserError for too few, too many or twice the same."""
    classes = tuple(read_lines(file))
    if not 2 <= len(classes) <= 255:
        raise UserError(f"{file}: {len(classes)} classes; 2 to 255 lines are expected, one class each")
    if len(set(classes)) < len(classes):
        raise UserError(f"{file}: {next(name for name in classes if classes.count(name) > 1)} is listed twice")
    return classes


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty; raises UserError if it cannot be read."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable text file in UTF-8 ({error})") from error
