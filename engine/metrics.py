"""Scores of a split, from a confusion matrix and along boundaries. Reads saved scores, too."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.files import UNLABELLED
from errors import UserError

METRICS = "metrics.json"
MEANS = ("miou", "dice", "pixel_accuracy")


class ConfusionMatrix:
    """Pixel counts over a split by truth (row) and prediction (column). Unlabelled pixels do not count."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.long)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Counts pixels. prediction, label: integer tensors of one shape on one device; a label is a class id or 255."""
        classes = len(self.counts)
        counted = label != UNLABELLED
        pairs = label[counted].long() * classes + prediction[counted].long()
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    def scores(self, classes: Sequence[str]) -> dict:
        """Returns fractions of 1: `miou` and `dice` (means over the classes in truth or prediction), `pixel_accuracy`, and
        `iou` and `dice_per_class` by class name, None for a class in neither. A mean over no class is NaN."""
        counts = self.counts.double()
        hit, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        iou = hit / (truth + predicted - hit)
        dice = 2 * hit / (truth + predicted)

        return {
            "miou": iou.nanmean().item(),
            "dice": dice.nanmean().item(),
            "pixel_accuracy": (hit.sum() / counts.sum()).item(),
            "iou": _by_name(classes, iou),
            "dice_per_class": _by_name(classes, dice),
        }


class BoundaryScores:
    """Boundary IoU (Cheng et al., CVPR 2021) over a split: the IoU of truth and prediction near their own boundaries. Near is
    within 2% of the image's diagonal. The image border is a boundary. Unlabelled pixels have no class."""

    SHARE_OF_DIAGONAL = 0.02

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, 2, dtype=torch.long)
        """(C, 2) pixels near the boundary in both truth and prediction, and in either"""

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """Counts pixels of an image. prediction, label: (H, W) integer tensors; a label is a class id or 255."""
        truth = label.cpu().numpy()
        predicted = np.where(truth == UNLABELLED, UNLABELLED, prediction.cpu().numpy())
        width = max(1, round(self.SHARE_OF_DIAGONAL * math.hypot(*truth.shape)))
        for number in np.union1d(np.unique(truth), np.unique(predicted)):
            if number != UNLABELLED:
                ours, theirs = (_near_boundary(array == number, width) for array in (predicted, truth))
                self.counts[number] += torch.tensor([(ours & theirs).sum(), (ours | theirs).sum()])

    def scores(self, classes: Sequence[str]) -> dict:
        """Returns fractions of 1: `boundary_iou`, the mean over the classes that occur, and `boundary_iou_per_class`."""
        hit, either = self.counts.double().unbind(dim=1)
        return {
            "boundary_iou": (hit / either).nanmean().item(),
            "boundary_iou_per_class": _by_name(classes, hit / either),
        }


SHARES = "shares.json"  # predict.py writes this file beside its labels


def label_quality(counts: np.ndarray, classes: Sequence[str]) -> dict:
    """Returns how well labels agree with dense masks. counts: (C, C + 1) pixels by class in the mask (row) and label (column;
    the last: unlabelled).

    By class name, as fractions of 1: `precision_of_class`, the share of the class's labels that are right; `coverage_of_class`,
    the share of the class's pixels that have the class's label; `iou_of_class`, where an unlabelled pixel counts as missed.
    None for a class without labels or without pixels. `miou`: the mean of `iou_of_class` over the classes that occur.
    """
    pixels = torch.from_numpy(counts).double()
    hit, truth, labelled = pixels.diagonal(), pixels.sum(dim=1), pixels[:, :-1].sum(dim=0)
    iou = hit / (truth + labelled - hit)
    return {
        "precision_of_class": _by_name(classes, hit / labelled),
        "coverage_of_class": _by_name(classes, hit / truth),
        "iou_of_class": _by_name(classes, iou),
        "miou": iou.nanmean().item(),
    }


def read_label_quality(folder: Path) -> dict[str, float]:
    """Returns `labels/precision/CLASS` and `labels/coverage/CLASS` from FOLDER/shares.json of predict.py. Returns an empty
    dictionary if the file is missing or predict.py had no masks. Raises UserError for a damaged file."""
    file = folder / SHARES
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
        return {
            f"labels/{kind}/{name}": float(value)
            for kind in ("precision", "coverage")
            for name, value in found.get(f"{kind}_of_class", {}).items()
            if value is not None
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: damaged, or not written by predict.py ({error}): delete it") from error


def normalised_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the entropy of probabilities (C, H, W) as (H, W), 0 (certain) to 1 (all classes equally likely)."""
    # Class by class, since the memory may not hold the probabilities of a large photo twice.
    return sum(torch.special.entr(of_class) for of_class in probabilities) / math.log(max(2, len(probabilities)))


def read_evaluation(folder: Path) -> dict:
    """Returns the content of FOLDER/metrics.json from evaluate.py. Raises UserError if the file is missing or damaged."""
    file = folder / METRICS
    if not file.is_file():
        raise UserError(f"{file} not found: evaluate the run first (CHECKPOINT=RUN/best.pt sh evaluate.sh)")
    try:
        found = json.loads(file.read_text())
        complete = (
            all(isinstance(found[name], float) for name in MEANS)
            and all(isinstance(found[name], dict) for name in ("iou", "conditions"))
            and all(isinstance(found["conditions"][name], dict) for name in ("data", "inference"))
            and set(found["conditions"]["data"]) == {"root", "labels", "split"}
            and isinstance(found["conditions"]["checkpoint_sha256"], str)
        )
        if not complete:
            raise ValueError("scores or conditions are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged, or not written by evaluate.py ({error}): evaluate the run again") from error
    return found


def _near_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """Returns the pixels of a mask (H, W) bool within `width` steps (also diagonal) of a pixel outside mask or image."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def _by_name(classes: Sequence[str], values: torch.Tensor) -> dict[str, float | None]:
    return {name: None if value.isnan() else value.item() for name, value in zip(classes, values, strict=True)}


def table(scores: dict) -> str:
    """Returns IoU and Dice by class, their means, pixel accuracy and boundary IoU in percent, as lines of text."""
    width = max(len("pixel accuracy"), *(len(name) for name in scores["iou"]))
    percent = lambda value: f"{'-':>7}" if value is None else f"{100 * value:7.2f}"  # noqa: E731
    lines = [f"{'class':<{width}}  {'IoU':>7}  {'Dice':>7}"]
    lines += [
        f"{name:<{width}}  {percent(iou)}  {percent(scores['dice_per_class'][name])}" for name, iou in scores["iou"].items()
    ]
    lines += [f"{'mean':<{width}}  {percent(scores['miou'])}  {percent(scores['dice'])}"]
    lines += [f"{'pixel accuracy':<{width}}  {percent(scores['pixel_accuracy'])}"]
    lines += [f"{'boundary IoU':<{width}}  {percent(scores['boundary_iou'])}"]
    return "\n".join(lines)
