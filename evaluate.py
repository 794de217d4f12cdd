"""Scores a checkpoint on a split: per-class IoU and Dice, mIoU, pixel accuracy, boundary IoU.

    python evaluate.py --checkpoint runs/ur/best.pt --data.root DIR --data.split val --preset paper --out runs/ur/evaluation

    torchrun --nproc_per_node 4 evaluate.py --checkpoint ...

Prints a table and writes OUT/metrics.json (fractions of 1, the confusion matrix, the conditions) and OUT/pictures.png.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import EvaluateConfig, parse
from datasets import open_index
from datasets.check import check
from datasets.demo import draw_if_missing
from datasets.segmentation import SegmentationDataset
from datasets.transforms import denormalise
from engine import distributed
from engine.checkpoint import fingerprint, load_model
from engine.crf import refine
from engine.inference import predict_probabilities
from engine.metrics import BoundaryScores, ConfusionMatrix, table
from engine.pictures import evenly, picture_grid
from engine.provenance import commit
from errors import UserError, run
from methods.base import Method

PICTURES = 12  # rows of the picture grid


def main() -> None:
    """The command line above; raises UserError for a checkpoint of other classes, or data that cannot be scored."""
    config = parse(EvaluateConfig, __doc__)
    process = distributed.start(config.run.device)
    try:
        config.run.precision = distributed.pick_precision(process.device, config.run.precision)
        evaluate(config, process)
    finally:
        distributed.stop()


def evaluate(config: EvaluateConfig, process: distributed.Process) -> None:
    """Scores the checkpoint on this process's share of the split; the main process prints and writes what all have found."""
    method = load_model(config.checkpoint)
    if process.is_main:
        draw_if_missing(config.data.root)
    distributed.wait_for_all()
    index = open_index(config.data.root, config.data.split, config.data.labels)
    if len(index.classes) != len(method.classes):
        raise UserError(
            f"{config.checkpoint}: trained on {len(method.classes)} classes, {config.data.root} has {len(index.classes)}"
        )
    dataset = SegmentationDataset(index)
    if process.is_main:
        check(dataset, config.data.split)
    distributed.wait_for_all()

    matrix, boundaries, rows = score(method.to(process.device, memory_format=torch.channels_last), dataset, config, process)
    if not process.is_main:
        return
    if not matrix.counts.sum():
        raise UserError(f"{config.data.labels}: no labelled pixel in split {config.data.split}, nothing to score")
    scores = matrix.scores(index.classes) | boundaries.scores(index.classes)
    print(table(scores))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    record = scores | {"confusion_matrix": matrix.counts.tolist(), "conditions": conditions(config, len(index))}
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    picture_grid(rows, ["image", "prediction", "truth"], index.palette).save(out / "pictures.png")
    print(f"wrote {out / 'metrics.json'} and {out / 'pictures.png'}")


@torch.inference_mode()
def score(
    method: Method, dataset: SegmentationDataset, config: EvaluateConfig, process: distributed.Process
) -> tuple[ConfusionMatrix, BoundaryScores, list]:
    """Counts over the whole split, summed over the processes, and rows of image, prediction and truth of some of this
    process's images. Each process takes every n-th image, so none is counted twice."""
    matrix, boundaries = ConfusionMatrix(len(dataset.index.classes)), BoundaryScores(len(dataset.index.classes))
    share = range(process.rank, len(dataset), process.world)
    shown, rows = evenly(len(share), PICTURES), []
    loader = DataLoader(dataset, batch_size=None, sampler=share, num_workers=config.run.workers)
    bar = tqdm(loader, config.data.split, unit="image", leave=False, disable=None if process.is_main else True)
    for number, item in enumerate(bar):
        image = denormalise(item["image"])
        sharpen = None if config.crf == "none" else partial(refine, image=image, library=config.crf)
        with distributed.autocast(process.device, config.run.precision):
            probabilities = predict_probabilities(
                method.predict, item["image"].to(process.device), config.inference, sharpen if config.crf_per_scale else None
            )
        if sharpen and not config.crf_per_scale:
            probabilities = sharpen(probabilities)
        prediction = probabilities.argmax(dim=0).cpu()
        matrix.update(prediction, item["label"])
        boundaries.update(prediction, item["label"])
        if number in shown:
            rows.append([image, prediction.byte().numpy(), item["label"].byte().numpy()])
    for counts in (matrix, boundaries):
        counts.sum_over_processes(process.device)
    return matrix, boundaries, rows


def conditions(config: EvaluateConfig, images: int) -> dict:
    """What the scores depend on: settings, the checkpoint's hash, the code's commit and the libraries' versions."""
    return {
        "images": images,
        "checkpoint_sha256": fingerprint(config.checkpoint),
        "commit": commit(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
        **asdict(config),
    }


if __name__ == "__main__":
    run(main)
