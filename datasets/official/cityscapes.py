"""Cityscapes (Cordts et al., CVPR 2016). The label ids become the 19 scored train ids; all other pixels become void."""

from pathlib import Path

import numpy as np

from datasets.files import UNLABELLED, read_label
from datasets.official.source import Source, require
from errors import UserError

# The label ids in the files, in order of the train ids.
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
    "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CITYSCAPES_CLASSES = tuple(LABEL_IDS)
TRAIN_IDS = np.full(256, UNLABELLED, np.uint8)
"""label id -> train id, 255 = void"""
TRAIN_IDS[list(LABEL_IDS.values())] = np.arange(len(LABEL_IDS))

PAGE = "https://www.cityscapes-dataset.com/downloads/"
IMAGE, LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def read_cityscapes(root: Path) -> Source:
    """Reads Cityscapes as unpacked: ROOT/leftImg8bit/SPLIT/CITY and ROOT/gtFine/SPLIT/CITY, for train and val. Raises UserError
    for missing folders."""
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for split in ("train", "val"):
        folder = require(root / "leftImg8bit" / split, "the images (leftImg8bit_trainvaltest.zip)", PAGE)
        require(root / "gtFine" / split, "the labels (gtFine_trainvaltest.zip)", PAGE)
        found = {path.name.removesuffix(IMAGE): path for path in sorted(folder.glob(f"*/*{IMAGE}"))}
        if not found:
            raise UserError(f"{folder}: no CITY/*{IMAGE} in it; download the images from {PAGE}")
        splits[split] = list(found)
        images |= found
        labels |= {name: root / "gtFine" / split / path.parent.name / f"{name}{LABEL}" for name, path in found.items()}
    return Source(CITYSCAPES_CLASSES, splits, images, {"SegmentationClass": labels}, read_cityscapes_label)


def read_cityscapes_label(path: Path) -> np.ndarray:
    """Reads a label of label ids as (H, W) uint8 train ids, 255 = void. Raises UserError if the label is unreadable."""
    return TRAIN_IDS[read_label(path)]
