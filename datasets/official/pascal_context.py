"""Pascal Context (Mottaghi et al., CVPR 2014): 59 classes and background on PASCAL VOC 2010's images."""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.files import read_matlab
from datasets.index import read_names
from datasets.official.source import Source, require
from errors import UserError

# Background, then the 59 frequent classes in the order of the official 59_labels.txt: VOC's 20 first. The released networks use
# the same order. (Some benchmarks, for example mmsegmentation, number the classes alphabetically.)
CONTEXT_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench", "book",
    "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk",
    "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
)  # fmt: skip

PAGE = "https://cs.stanford.edu/~roozbeh/pascal-context/"


def read_context(voc: Path, context: Path) -> Source:
    """Reads Pascal Context as unpacked, on PASCAL VOC 2010 (VOCdevkit/VOC2010). The splits come from VOC 2010's ImageSets/Main.

    context: the folder with labels.txt and trainval/NAME.mat. Raises UserError for missing files.
    """
    voc_page = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/"
    images = require(voc / "JPEGImages", "VOC 2010's images", voc_page)
    lists = require(voc / "ImageSets" / "Main", "VOC 2010's lists", voc_page)
    label_folder = require(context / "trainval", "the labels (trainval.tar.gz)", PAGE)
    numbers = class_table(require(context / "labels.txt", "the list of 459 names", PAGE))
    labels = {path.stem: path for path in sorted(label_folder.glob("*.mat"))}
    splits = {
        split: [name for name in read_names(require(lists / f"{split}.txt", "VOC 2010's list", voc_page)) if name in labels]
        for split in ("train", "val")
    }
    names = [name for split in splits.values() for name in split]
    if not names:
        raise UserError(f"{label_folder}: no .mat file of an image in {lists}/train.txt or val.txt")
    return Source(
        classes=CONTEXT_CLASSES,
        splits=splits,
        images={name: images / f"{name}.jpg" for name in names},
        maps={"SegmentationClass": {name: labels[name] for name in names}},
        read=partial(read_context_label, numbers),
    )


def class_table(file: Path) -> np.ndarray:
    """labels.txt ("1: accordion" ...) -> (65536,) uint8: the class id of each of the 459 numbers, 0 outside the 59 classes."""
    numbers = np.zeros(65536, np.uint8)
    found = set()
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, name = (part.strip() for part in line.partition(":"))
        if name in CONTEXT_CLASSES[1:] and number.isdecimal() and int(number) < len(numbers):
            numbers[int(number)] = CONTEXT_CLASSES.index(name)
            found.add(name)
    missing = sorted(set(CONTEXT_CLASSES[1:]) - found)
    if missing:
        raise UserError(
            f"{file}: the class {missing[0]} is missing ({len(missing)} of 59 are); lines such as 1: accordion are expected"
        )
    return numbers


def read_context_label(numbers: np.ndarray, path: Path) -> np.ndarray:
    """Reads a MATLAB label of 459 classes as (H, W) uint8 of the 59 and background. Raises UserError if it is unreadable."""
    return numbers[read_matlab(path, lambda content: content["LabelMap"]).astype(np.uint16)]
