"""KITTI-360 (Liao et al., TPAMI 2022). The label ids become Cityscapes' 19 train ids; all other pixels become void."""

from pathlib import Path

import numpy as np

from datasets.files import read_label
from datasets.index import read_names
from datasets.official.cityscapes import CITYSCAPES_CLASSES, TRAIN_IDS
from datasets.official.source import Source, require
from errors import UserError

KITTI360_TRAIN_IDS = TRAIN_IDS.copy()
"""label id -> train id, 255 = void. Garages, gates and small poles count as in kitti360scripts/helpers/labels.py."""
for number, name in {34: "building", 35: "fence", 37: "pole"}.items():
    KITTI360_TRAIN_IDS[number] = CITYSCAPES_CLASSES.index(name)

PAGE = "https://www.cvlibs.net/datasets/kitti-360/download.php"


def read_kitti360(root: Path) -> Source:
    """Reads the perspective images and 2-D labels as unpacked: ROOT/data_2d_raw and ROOT/data_2d_semantics, with the official
    lists of frames. An image is named DRIVE_FRAME. Raises UserError for missing files."""
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    require(root / "data_2d_raw", "the perspective images", PAGE)
    for split in ("train", "val"):
        file = require(
            root / "data_2d_semantics" / "train" / f"2013_05_28_drive_{split}_frames.txt", "the 2-D semantic labels", PAGE
        )
        splits[split] = []
        for line in read_names(file):
            paths = line.split()
            if len(paths) != 2:
                raise UserError(f"{file}: the line {line!r} is not an image and a label")
            name = kitti360_name(Path(paths[0]))
            if name in images:
                raise UserError(f"{file}: {name} is listed twice")
            splits[split].append(name)
            images[name], labels[name] = (root / path for path in paths)
    return Source(CITYSCAPES_CLASSES, splits, images, {"SegmentationClass": labels}, read_kitti360_label)


def kitti360_name(path: Path) -> str:
    """Returns DRIVE_FRAME of a file DRIVE/image_00/.../FRAME.png: frame numbers begin anew in every drive. Raises UserError for
    another path."""
    parts = path.parts
    if "image_00" not in parts[1:]:
        raise UserError(f"{path}: not in a folder DRIVE/image_00 of KITTI-360")
    return f"{parts[parts.index('image_00', 1) - 1]}_{path.stem}"


def read_kitti360_label(path: Path) -> np.ndarray:
    """Reads a label of label ids as (H, W) uint8 train ids, 255 = void. Raises UserError if the label is unreadable."""
    return KITTI360_TRAIN_IDS[read_label(path)]
