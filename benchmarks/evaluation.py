"""Compares evaluate.py with preset `fast` to a plain loop over windows: images per second.

    python -m benchmarks.evaluation CHECKPOINT DATA_ROOT [--images 386] [--window 192]

The loop does what the released codes do, at one scale. A window of the training crop moves by two thirds of its side. Each
window goes through the network alone, in float32. The CPU averages the probabilities and reads the images. Both methods score
the same images. Rounds alternate between the two methods, and the median counts.
"""

import statistics
import time
from dataclasses import dataclass, field, replace
from itertools import product

import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveInt

from benchmarks.measure import as_json
from command_line import parse
from config import EvaluateConfig, RunConfig, SplitConfig
from datasets import open_index
from datasets.segmentation import SegmentationDataset
from datasets.transforms import normalise
from engine import distributed
from engine.checkpoint import load_model
from engine.inference import window_starts
from engine.metrics import ConfusionMatrix
from errors import run
from evaluate import score
from methods.base import Method


@dataclass
class BenchmarkConfig:
    """The checkpoint, the data and the number of rounds."""

    checkpoint: str
    """best.pt of a run"""
    root: str
    """the data set; its val split is scored"""
    images: PositiveInt = 386
    """number of images of the split"""
    window: PositiveInt = 192
    """side of the windows of the loop, in pixels"""
    rounds: PositiveInt = 3
    """rounds; in each round both methods score the images"""
    run: RunConfig = field(default_factory=RunConfig)


def main() -> None:
    """Runs the command line above and prints a table and JSON."""
    config = parse(BenchmarkConfig, __doc__, positional=True)
    index = open_index(config.root, "val", "SegmentationClass")
    index = replace(index, **{part: getattr(index, part)[: config.images] for part in ("names", "images", "labels")})
    dataset = SegmentationDataset(index)
    with distributed.joined(config.run.device) as process:
        config.run.precision = distributed.pick_precision(process.device, config.run.precision)
        settings = EvaluateConfig(config.checkpoint, data=SplitConfig(root=config.root), run=config.run)
        method = load_model(config.checkpoint).to(process.device)
        fast = load_model(config.checkpoint)
        distributed.move_to_device(fast, process.device)
        contenders = {
            "one window at a time": lambda: score_by_windows(method, dataset, config.window, process.device),
            "evaluate.py, fast": lambda: score(fast, dataset, settings, process)[0],
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        scores = {}
        for _ in range(config.rounds):
            for name, contender in contenders.items():
                start = time.perf_counter()
                scores[name] = contender().scores(index.classes)["miou"]
                seconds[name].append(time.perf_counter() - start)
    rows = [
        {"evaluation": name, "images_per_second": len(index) / statistics.median(times), "miou": 100 * scores[name]}
        for name, times in seconds.items()
    ]
    print("| evaluation | images/s | mIoU |\n|---|---|---|")
    for row in rows:
        print(f"| {row['evaluation']} | {row['images_per_second']:.1f} | {row['miou']:.2f} |")
    print(f"{rows[1]['images_per_second'] / rows[0]['images_per_second']:.2f} times the images a second")
    print(as_json(rows, process.device, images=len(index), precision=config.run.precision))


@torch.inference_mode()
def score_by_windows(method: Method, dataset: SegmentationDataset, window: int, device: torch.device) -> ConfusionMatrix:
    """Scores the images in the plain loop, one window at a time."""
    matrix = ConfusionMatrix(len(dataset.index.classes))
    for position in range(len(dataset)):
        item = dataset[position]
        image = normalise(item["image"][None].to(device)).contiguous()
        height, width = image.shape[-2:]
        image = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
        total = torch.zeros(len(dataset.index.classes), *image.shape[-2:])
        count = torch.zeros(image.shape[-2:])
        stride = round(window * 2 / 3)
        for top, left in product(*(window_starts(side, window, stride) for side in image.shape[-2:])):
            place = (..., slice(top, top + window), slice(left, left + window))
            total[place] += method.predict(image[place])[0].softmax(dim=0).cpu()
            count[place] += 1
        matrix.update((total / count)[:, :height, :width].argmax(dim=0), item["label"])
    return matrix


if __name__ == "__main__":
    run(main)
