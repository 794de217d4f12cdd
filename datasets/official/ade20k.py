"""ADE20K (Zhou et al., CVPR 2017) as the scene parsing challenge of 2016 packs it: 150 classes, 20,210 + 2,000 images."""

from pathlib import Path

import numpy as np

from datasets.files import UNLABELLED, read_label
from datasets.official.source import Source, require
from errors import UserError

# A name of each class, in the order of the download's objectInfo150.txt.
ADE20K_CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa", "shelf",
    "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub",
    "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper",
    "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door",
    "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel",
    "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane",
    "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van",
    "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot",
    "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light",
    "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass",
    "clock", "flag",
)  # fmt: skip

ADE20K_TRAIN_IDS = np.full(256, UNLABELLED, np.uint8)
"""label id -> class id, 255 = unlabelled"""
ADE20K_TRAIN_IDS[1 : 1 + len(ADE20K_CLASSES)] = np.arange(len(ADE20K_CLASSES))

PAGE = "http://sceneparsing.csail.mit.edu/"


def read_ade20k(root: Path) -> Source:
    """Reads ADEChallengeData2016 as unpacked: ROOT/images and ROOT/annotations, each with training and validation. Raises
    UserError for missing folders."""
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for split, packed in (("train", "training"), ("val", "validation")):
        folder = require(root / "images" / packed, "ADEChallengeData2016.zip", PAGE)
        require(root / "annotations" / packed, "ADEChallengeData2016.zip", PAGE)
        found = {path.stem: path for path in sorted(folder.glob("*.jpg"))}
        if not found:
            raise UserError(f"{folder}: no .jpg in it; download ADEChallengeData2016.zip from {PAGE}")
        splits[split] = list(found)
        images |= found
        labels |= {name: root / "annotations" / packed / f"{name}.png" for name in found}
    return Source(ADE20K_CLASSES, splits, images, {"SegmentationClass": labels}, read_ade20k_label)


def read_ade20k_label(path: Path) -> np.ndarray:
    """Reads a label, 0 = other, 1-150 = classes, as (H, W) uint8 ids from 0, 255 = unlabelled. Raises UserError if the label is
    unreadable."""
    return ADE20K_TRAIN_IDS[read_label(path)]
