"""Measures how many training images per second one core prepares: it reads, augments and crops them and makes batches, as a
loader worker does. Superpixels and the transfer to the main process are not measured.

python -m benchmarks.loading DATA_ROOT [--labels SegmentationClass] [--crop 465]
"""

import statistics
import time
from dataclasses import dataclass

import torch
from jsonargparse.typing import PositiveInt

from benchmarks.measure import as_json
from command_line import parse
from config import DataConfig
from datasets import open_index
from datasets.batch import collate
from datasets.segmentation import SegmentationDataset, TrainingOrder
from engine.loading import augmentation
from errors import run

BATCH, BATCHES, ROUNDS = 16, 6, 5


@dataclass
class LoadingConfig:
    """The data to load."""

    root: str
    """the data set; its train split is read"""
    labels: str = "SegmentationClass"
    """folder of the training labels"""
    crop: PositiveInt = 465
    """side of the crops, in pixels"""


def main() -> None:
    """Runs the command line above and prints the median, and all rounds as JSON."""
    config = parse(LoadingConfig, __doc__, positional=True)
    torch.set_num_threads(1)
    augment = augmentation(DataConfig(crop=config.crop))
    dataset = SegmentationDataset(open_index(config.root, "train", config.labels), augment)
    rates = []
    for seed in range(ROUNDS + 1):
        order = list(TrainingOrder(len(dataset), BATCH, BATCHES, seed))
        start = time.process_time()
        for keys in order:
            collate([dataset[key] for key in keys])
        rates.append(BATCH * BATCHES / (time.process_time() - start))
    rates = rates[1:]  # the first round is a warm-up
    print(f"{statistics.median(rates):.0f} images a second of one core's time, crop {config.crop}")
    print(as_json([{"images_per_second": round(rate, 1)} for rate in rates], torch.device("cpu"), crop=config.crop))


if __name__ == "__main__":
    run(main)
