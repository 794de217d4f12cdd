"""Scores the maps of RecurSeed's classifier: CAM, with SCG, with PAMR, with both. The network is frozen.

    python -m benchmarks.seeds --checkpoint runs/tags/classifier/best.pt --root data/tags

The tags of an image are the classes of its mask. A pixel gets the tagged class of the largest value, or the background if this
value is under a threshold; each row has the threshold of the best mIoU. For each class, IoU + false detection (pixels with the
class's label only) + non-detection (pixels of the class without the label) = 100%, each over the union of both; the rows are
means over the classes. The mean average precision of the tags says whether the classifier has learnt.
"""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from command_line import parse
from datasets import open_index
from datasets.segmentation import SegmentationDataset
from datasets.transforms import normalise
from engine.checkpoint import load_model
from engine.inference import padded_with_outside
from engine.metrics import ConfusionMatrix
from errors import UserError, run
from methods.recurseed import RecurSeed
from models.recurseed import RecurSeedNet
from ops.seeds import activation_maps, grown_maps, over_largest, refined_maps, tag_logits

THRESHOLDS = [number / 20 for number in range(1, 20)]
ROWS = ("CAM", "CAM + SCG", "CAM + PAMR", "CAM + SCG + PAMR")


@dataclass
class SeedsConfig:
    """The checkpoint and the images."""

    checkpoint: str
    """checkpoint of recurseed"""
    root: str = "data/tags"
    """the data set"""
    split: str = "val"
    """list of images"""
    labels: str = "SegmentationClass"
    """dense masks: a folder of root, or a path"""


def main() -> None:
    """Runs the command line above. Raises UserError for a checkpoint of another method."""
    config = parse(SeedsConfig, __doc__)
    method = load_model(config.checkpoint)
    if not isinstance(method, RecurSeed):
        raise UserError(f"{config.checkpoint}: not a checkpoint of recurseed")
    index = open_index(config.root, config.split, config.labels)
    dataset = SegmentationDataset(replace(index, tags=None))
    matrices = {row: [ConfusionMatrix(len(method.classes)) for _ in THRESHOLDS] for row in ROWS}
    likely, present = [], []
    for position in tqdm(range(len(dataset)), unit="image", leave=False, disable=None):
        item = dataset[position]
        maps, probabilities = seeds(method, item["image"], item["tags"])
        for row, (values, ids) in maps.items():
            value, slot = values.max(dim=0)
            for threshold, matrix in zip(THRESHOLDS, matrices[row], strict=True):
                matrix.update(torch.where(value >= threshold, ids[slot], 0), item["label"])
        likely.append(probabilities.numpy())
        present.append(item["tags"].numpy() > 0)
    print(f"tags: mean average precision {100 * mean_average_precision(np.array(likely), np.array(present)):.1f}%")
    print("| maps | threshold | mIoU | false detection | non-detection |\n|---|---|---|---|---|")
    for row in ROWS:
        scores = [shares(matrix.counts) for matrix in matrices[row]]
        best = max(range(len(THRESHOLDS)), key=lambda number: scores[number][0])
        print(f"| {row} | {THRESHOLDS[best]:.2f} | " + " | ".join(f"{100 * share:.1f}" for share in scores[best]) + " |")


@torch.inference_mode()
def seeds(
    method: RecurSeed, image: torch.Tensor, tags: torch.Tensor
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """The maps of an image (3, H, W) uint8 with tags (C - 1,): row -> (k, H, W) and class ids (k,); and the probabilities of
    the classifier, (C - 1,)."""
    height, width = image.shape[-2:]
    network, config = cast(RecurSeedNet, method.average.module), method.config
    images, outside = padded_with_outside(normalise(image)[None], method.grid)
    maps, features = network.encode(images)
    activations = network.tags(features)
    cam = activation_maps(activations, outside)
    grown = grown_maps(cam, network.correlated(maps), config.seed_thresholds, outside)
    found = {}
    for row, values in zip(ROWS, (cam, grown, cam, grown), strict=True):
        iterations = config.refine if "PAMR" in row else 0
        refined, ids = refined_maps(images, values, tags[None], iterations, config.dilations)
        found[row] = over_largest(refined)[0, :, :height, :width], ids[0]
    return found, tag_logits(activations, outside)[0].sigmoid()


def shares(counts: torch.Tensor) -> tuple[float, float, float]:
    """Means over the classes of IoU, false detection and non-detection, from counts (C, C) by truth (row) and prediction."""
    hit, truth, predicted = counts.diagonal().double(), counts.sum(dim=1).double(), counts.sum(dim=0).double()
    union = truth + predicted - hit
    iou, false, missed = hit / union, (predicted - hit) / union, (truth - hit) / union
    return iou.nanmean().item(), false.nanmean().item(), missed.nanmean().item()


def mean_average_precision(likely: np.ndarray, present: np.ndarray) -> float:
    """Mean over the classes of the average precision of the tags: the mean of the precision at each image that shows the class,
    in the order of the probabilities. likely: (images, K) probabilities. present: (images, K) bool."""
    precisions = []
    for values, shown in zip(likely.T, present.T, strict=True):
        if shown.any():
            ordered = shown[np.argsort(-values, kind="stable")]
            precisions.append((np.cumsum(ordered) / np.arange(1, 1 + len(ordered)))[ordered].mean())
    return float(np.mean(precisions))


if __name__ == "__main__":
    run(main)
