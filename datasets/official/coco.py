"""COCO 2014 and 2017 (Lin et al., ECCV 2014). Instances become a mask of 80 classes and background."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import MOST_PIXELS
from datasets.index import check_name
from datasets.official.source import Source, require
from errors import UserError, extra

COCO_CLASSES = (
    "background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear",
    "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip

PAGE = "https://cocodataset.org/#download"


def read_coco(root: Path, year: int) -> Source:
    """Reads COCO as unpacked: ROOT/trainYEAR, ROOT/valYEAR and ROOT/annotations/instances_{train,val}YEAR.json.

    The tags of an image are the classes of its instances. Raises UserError for missing files or another format.
    """
    splits: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    labels: dict[str, tuple] = {}
    tags: dict[str, list[str]] = {}
    for split in ("train", "val"):
        folder = require(root / f"{split}{year}", f"the images ({split}{year}.zip)", PAGE)
        file = require(
            root / "annotations" / f"instances_{split}{year}.json", f"the instances (annotations_trainval{year}.zip)", PAGE
        )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            number_of = {entry["id"]: COCO_CLASSES.index(entry["name"]) for entry in content["categories"]}
            annotations_of = defaultdict(list)
            for one in content["annotations"]:
                annotations_of[one["image_id"]].append((number_of[one["category_id"]], float(one["area"]), one["segmentation"]))
            splits[split] = []
            for entry in content["images"]:
                check_name(entry["file_name"], file)
                name, annotations = Path(entry["file_name"]).stem, annotations_of[entry["id"]]
                splits[split].append(name)
                images[name] = folder / entry["file_name"]
                labels[name] = (int(entry["height"]), int(entry["width"]), annotations)
                present = {number for number, _, _ in annotations}
                tags[name] = [COCO_CLASSES[number] for number in sorted(present)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: not a file of COCO's instances ({type(error).__name__}: {error})") from error
    return Source(COCO_CLASSES, splits, images, {"SegmentationClass": labels}, draw_instances, tags)


def draw_instances(image: tuple[int, int, list[tuple[int, float, Any]]]) -> np.ndarray:
    """Height, width and instances (class id, area in pixels, polygons or run lengths) -> (H, W) uint8, 0 = background.

    Instances are drawn from the largest to the smallest, so the smaller of two overlapping instances stays visible. Crowds are
    drawn like other instances. Raises UserError for an instance that cannot be drawn.
    """
    run_lengths = extra("pycocotools.mask")
    height, width, instances = image
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise UserError(f"{width}x{height} is not the size of an image")
    label = np.zeros((height, width), np.uint8)
    for number, _, segmentation in sorted(instances, key=lambda instance: -instance[1]):
        try:
            if isinstance(segmentation, list):
                code = run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                code = run_lengths.frPyObjects(segmentation, height, width)
            else:
                code = segmentation
            label[run_lengths.decode(code) > 0] = number
        except Exception as error:  # pycocotools raises many kinds of exceptions, even bare Exception
            raise UserError(f"an instance of {COCO_CLASSES[number]} cannot be drawn ({error})") from error
    return label
