"""What every data set is to the rest: an index of a split. The two layouts on disk are in voc.py and folder.py."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from errors import UserError

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


def under(root: Path, folder: str | Path) -> Path:
    """`folder` as a folder of `root` where it exists there, else as a path of its own."""
    inside = root / folder
    return inside if inside.is_dir() or not Path(folder).is_dir() else Path(folder)


def read_names(list_file: Path) -> list[str]:
    """Image names, one a line; raises UserError where there is none, or one leads out of the image folder."""
    names = _read_lines(list_file)
    if not names:
        raise UserError(f"{list_file}: the split is empty; write one image name a line")
    for name in names:
        check_name(name, list_file)
    return names


def check_name(name: str, file: Path) -> None:
    """Raises UserError where an image name that stands in `file` leads out of the image folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
        raise UserError(f"{file}: the name {name!r} leads out of the image folder")


def label_paths(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """FOLDER/NAME.png of every name; raises UserError where any is missing."""
    if not folder.is_dir():
        raise UserError(f"label folder {folder} not found")
    paths = tuple(folder / f"{name}.png" for name in names)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} not found ({len(missing)} of the split's {len(names)} labels are missing)")
    return paths


def read_tags(root: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> np.ndarray | None:
    """Which classes but the first each image shows, (names, classes - 1) bool, by ROOT/tags.json {name: [class, ...]}; None
    where there is no such file, or none of the images is in it. Raises UserError where it does not fit."""
    file = root / "tags.json"
    if not file.is_file():
        return None
    try:
        tags_of = json.loads(file.read_text(encoding="utf-8"))
        if not any(image in tags_of for image in names):
            return None
        rows = [[name in tags_of[image] for name in classes[1:]] for image in names]
        unknown = [tag for image in names for tag in tags_of[image] if tag not in classes]
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: a list of class names is expected for every image; {error} has none") from error
    if unknown:
        raise UserError(f"{file}: {unknown[0]} is none of the classes")
    return np.array(rows, bool)


def find_image(folder: Path, name: str) -> Path:
    """The image called `name` in `folder`, with whichever of `IMAGE_SUFFIXES` it has."""
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no image with this name ({', '.join(IMAGE_SUFFIXES)})")


def read_class_file(file: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line, in id order; raises UserError for too few, too many or twice the same."""
    classes = tuple(_read_lines(file))
    if not 2 <= len(classes) <= 255:
        raise UserError(f"{file}: {len(classes)} classes; 2 to 255 lines are expected, one class each")
    if len(set(classes)) < len(classes):
        raise UserError(f"{file}: {next(name for name in classes if classes.count(name) > 1)} stands there twice")
    return classes


def _read_lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable text file in UTF-8 ({error})") from error
