"""Scores a checkpoint on a split: per-class IoU and Dice, mIoU, pixel accuracy.

    python evaluate.py --checkpoint runs/ur/best.pt --data.root DIR --data.split val --preset paper --out runs/ur/evaluation

Prints a table and writes OUT/metrics.json (fractions of 1, with the conditions) and OUT/pictures.png.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

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
from engine.metrics import ConfusionMatrix, table
from engine.pictures import evenly, picture_grid
from errors import UserError, run

PICTURES = 12  # rows of the picture grid


def main() -> None:
    """The command line above; raises UserError for a checkpoint of other classes, or data that cannot be scored."""
    config = parse(EvaluateConfig, __doc__)
    device = distributed.pick_device(config.run.device)
    config.run.precision = distributed.pick_precision(device, config.run.precision)
    method = load_model(config.checkpoint)
    draw_if_missing(config.data.root)
    index = open_index(config.data.root, config.data.split, config.data.labels)
    if len(index.classes) != len(method.classes):
        raise UserError(
            f"{config.checkpoint}: trained on {len(method.classes)} classes, {config.data.root} has {len(index.classes)}"
        )
    dataset = SegmentationDataset(index)
    check(dataset, config.data.split)

    scores, rows = evaluate(method.to(device, memory_format=torch.channels_last), dataset, config, device)
    print(table(scores))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    conditions = {
        "images": len(index),
        "checkpoint_sha256": fingerprint(config.checkpoint),
        "torch": torch.__version__,
        **asdict(config),
    }
    (out / "metrics.json").write_text(json.dumps(scores | {"conditions": conditions}, indent=2) + "\n")
    picture_grid(rows, ["image", "prediction", "truth"], index.palette).save(out / "pictures.png")
    print(f"wrote {out / 'metrics.json'} and {out / 'pictures.png'}")


@torch.inference_mode()
def evaluate(
    method: torch.nn.Module, dataset: SegmentationDataset, config: EvaluateConfig, device: torch.device
) -> tuple[dict, list]:
    """Scores of `method` on `dataset` (see `ConfusionMatrix.scores`), and rows of image, prediction and truth of some."""
    matrix = ConfusionMatrix(len(dataset.index.classes))
    shown, rows = evenly(len(dataset), PICTURES), []
    loader = DataLoader(dataset, batch_size=None, num_workers=config.run.workers)
    for position, item in enumerate(tqdm(loader, config.data.split, unit="image", leave=False, disable=None)):
        image = denormalise(item["image"])
        sharpen = None if config.crf == "none" else partial(refine, image=image, library=config.crf)
        with distributed.autocast(device, config.run.precision):
            probabilities = predict_probabilities(
                method.predict, item["image"].to(device), config.inference, sharpen if config.crf_per_scale else None
            )
        if sharpen and not config.crf_per_scale:
            probabilities = sharpen(probabilities)
        prediction = probabilities.argmax(dim=0).cpu()
        matrix.update(prediction, item["label"])
        if position in shown:
            rows.append([image, prediction.byte().numpy(), item["label"].byte().numpy()])
    if not matrix.counts.sum():
        raise UserError(f"{config.data.labels}: no labelled pixel in split {config.data.split}, nothing to score")
    return matrix.scores(dataset.index.classes), rows


if __name__ == "__main__":
    run(main)
