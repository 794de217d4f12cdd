"""What can be wrong with a data set, before anything is trained on it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import UNLABELLED
from datasets.index import Index, evenly
from datasets.segmentation import SegmentationDataset, present_ids

MOST_READ = 2000  # images of a split that `check` reads; some seconds. tools.check_dataset reads them all


def check(dataset: SegmentationDataset, name: str) -> set[int]:
    """Reads images, labels and superpixel files of `dataset` (without augmentation), `MOST_READ` spread over it or all that
    there are; name: what the progress bar says. Returns the class ids that are in the labels.

    Raises UserError at the first that is unreadable, of another size than its image, or holds an id outside the classes.
    """

    def read(position: int) -> np.ndarray:
        _, maps = dataset.read(position)
        if dataset.has_graph:
            dataset.read_graph(position)
        return present_ids(maps["label"]) if "label" in maps else np.zeros(256, bool)

    positions = evenly(len(dataset), MOST_READ)
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
    """What is wrong with labels in `folder` that hold no other ids than `present`; None where there are two or more."""
    if not present:
        return f"{folder}: no pixel is labelled; everything is 255 in the images read"
    if len(present) == 1:
        only = classes[next(iter(present))]
        return f"{folder}: {only} is the only class in the images read; are these pictures of labels, or is unlabelled 0?"
    return None


def list_problems(train: Index, val: Index) -> list[str]:
    """What is wrong with the two splits' lists though every file is there: names twice in one, or in both."""
    problems = []
    for split, index in (("training", train), ("validation", val)):
        twice = [name for name, count in Counter(index.names).items() if count > 1]
        if twice:
            problems.append(f"{twice[0]} is in the {split} list more than once ({len(twice)} names are)")
    held_out = set(val.names)
    leaking = [name for name in train.names if name in held_out]
    if leaking:
        problems.append(f"{leaking[0]} is in the training and in the validation list ({len(leaking)} names are)")
    return problems
