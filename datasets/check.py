"""Checks of a data set before training."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import UNLABELLED
from datasets.index import Index, spread_positions
from datasets.segmentation import SegmentationDataset, present_ids

MAX_IMAGES = 2000  # images per split that `check` reads in some seconds; tools.check_dataset reads all images


def check(dataset: SegmentationDataset, name: str) -> set[int]:
    """Reads images, labels and superpixel files of `dataset` without augmentation. Returns the class ids in the labels.

    Reads at most `MAX_IMAGES` images, spread over the data set. name: text of the progress bar. Raises UserError at the first
    file that is unreadable, has another size than its image, or holds an id outside the classes.
    """

    def read(position: int) -> np.ndarray:
        _, maps = dataset.read(position)
        if dataset.has_graph:
            dataset.read_graph(position)
        return present_ids(maps["label"]) if "label" in maps else np.zeros(256, bool)

    positions = spread_positions(len(dataset), MAX_IMAGES)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(desc=f"checking {name}", total=len(positions), unit="image", leave=False, disable=None) as bar,
    ):
        present = np.zeros(256, bool)
        for one in pool.map(read, positions):
            present |= one
            bar.update()
    return set(np.flatnonzero(present[:UNLABELLED]).tolist())


def few_classes(present: set[int], classes: tuple[str, ...], folder: Path) -> str | None:
    """Returns a message if the labels in `folder` hold fewer than two class ids (`present`), else None."""
    if not present:
        return f"{folder}: no pixel is labelled; every pixel is 255 in the images read"
    if len(present) == 1:
        only = classes[next(iter(present))]
        return f"{folder}: {only} is the only class in the images read; unlabelled pixels must be 255, not 0"
    return None


def list_problems(train: Index, val: Index, kind: str = "training") -> list[str]:
    """Returns messages about the lists of two splits: names that are repeated in a list or are in both lists. kind: what the
    first list is called."""
    problems = []
    for split, index in ((kind, train), ("validation", val)):
        twice = [name for name, count in Counter(index.names).items() if count > 1]
        if twice:
            problems.append(f"{twice[0]} is in the {split} list more than once ({len(twice)} names are repeated)")
    held_out = set(val.names)
    leaking = [name for name in train.names if name in held_out]
    if leaking:
        problems.append(f"{leaking[0]} is in the {kind} and in the validation list ({len(leaking)} names are in both)")
    return problems
