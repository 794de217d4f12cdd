"""Scores predicted masks near the objects and on whole images: where labels end, networks may fail far away.

    python -m benchmarks.near_objects data/acdc runs/ur/masks

Near means within MARGIN pixels of the bounding box of all pixels of the mask that have a class other than 0 (the background).
Images without such pixels count for whole images alone. The predicted masks are those of evaluate.sh with SAVE=FOLDER.
"""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt

from command_line import parse
from datasets import open_index
from datasets.files import UNLABELLED, read_label
from engine.metrics import ConfusionMatrix
from errors import run


@dataclass
class NearConfig:
    """The data set and the predicted masks."""

    root: str
    """the data set"""
    masks: str
    """folder of predicted masks"""
    _: KW_ONLY
    split: str = "val"
    """list of images"""
    labels: str = "SegmentationClass"
    """dense masks: a folder of root, or a path"""
    margin: NonNegativeInt = 20
    """pixels around the bounding box"""


def main() -> None:
    """Runs the command line above."""
    config = parse(NearConfig, __doc__, positional=True)
    index = open_index(config.root, config.split, config.labels)
    matrices = {"whole images": ConfusionMatrix(len(index.classes)), "near the objects": ConfusionMatrix(len(index.classes))}
    for name, file in zip(index.names, index.label_files, strict=True):
        truth, found = read_label(file), read_label(Path(config.masks) / f"{name}.png")
        whole = (slice(None), slice(None))
        for where, part in (("whole images", whole), ("near the objects", box(truth, config.margin))):
            if part is not None:
                matrices[where].update(*(torch.from_numpy(array[part].copy()) for array in (found, truth)))
    for where, matrix in matrices.items():
        scores = matrix.scores(index.classes)
        by_class = ", ".join(f"{name} {'-' if iou is None else f'{100 * iou:.1f}'}" for name, iou in scores["iou"].items())
        print(f"{where:<17} mIoU {100 * scores['miou']:.1f} ({by_class})")


def box(truth: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """Returns the bounding box of the objects in a mask (H, W), enlarged by `margin` pixels. None without objects."""
    rows, columns = np.nonzero((truth > 0) & (truth != UNLABELLED))
    if not len(rows):
        return None
    sides = ((where.min(), where.max()) for where in (rows, columns))
    top, left = (slice(max(0, first - margin), last + margin + 1) for first, last in sides)
    return top, left


if __name__ == "__main__":
    run(main)
