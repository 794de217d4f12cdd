"""The VOC layout: ROOT/JPEGImages, label folders of PNGs, ROOT/ImageSets/Segmentation/SPLIT.txt, ROOT/classes.txt."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from errors import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class Index:
    """A split: names, one image and (where there are labels) one label map each, and what the ids in them mean."""

    names: tuple[str, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...] | None
    classes: tuple[str, ...]
    palette: np.ndarray
    """(256, 3) uint8"""

    def __len__(self) -> int:
        return len(self.names)


def voc_index(root: str | Path, split: str, labels: str | Path | None = None) -> Index:
    """The split `split` of the data at `root`.

    labels: the folder of label PNGs, a folder of root or a path; None: images only. The classes are the lines of
    ROOT/classes.txt in id order, or VOC's 21. Raises UserError for whatever is missing, an empty split, or a name
    that leads out of the folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data root {root} not found: give the folder that holds JPEGImages as --data.root")
    list_file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not list_file.is_file():
        raise UserError(f"{list_file} not found: a split is a text file of image names, one a line")
    names = tuple(read_names(list_file))
    images = tuple(find_image(root / "JPEGImages", name) for name in names)
    label_paths = None
    if labels is not None:
        folder = under(root, labels)
        if not folder.is_dir():
            raise UserError(f"label folder {folder} not found")
        label_paths = tuple(folder / f"{name}.png" for name in names)
        missing = [path for path in label_paths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]} not found ({len(missing)} of {len(names)} labels of split {split} are missing)")
    return Index(names, images, label_paths, read_classes(root), colour_map())


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
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{list_file}: the name {name} leads out of the image folder")
    return names


def find_image(folder: Path, name: str) -> Path:
    """The image called `name` in `folder`, with whichever of `IMAGE_SUFFIXES` it has."""
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{folder / name}: no image with this name (.jpg, .jpeg or .png)")


def read_classes(root: Path) -> tuple[str, ...]:
    """The class names in id order: lines of ROOT/classes.txt, or VOC's 21 where there is no such file."""
    file = root / "classes.txt"
    return read_class_file(file) if file.is_file() else VOC_CLASSES


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


def colour_map() -> np.ndarray:
    """PASCAL VOC's palette, (256, 3) uint8: the bits of an id, three at a time, from the top bits of red, green, blue down."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette
