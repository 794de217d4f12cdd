"""What can be wrong with a data set, before anything is trained on it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from datasets.index import Index
from datasets.segmentation import SegmentationDataset

MOST_READ = 2000  # images of a split that `check` reads; some seconds. tools.check_dataset reads them all


def check(dataset: SegmentationDataset, name: str) -> None:
    """Reads images, labels and superpixel files of `dataset` (without augmentation), `MOST_READ` spread over it or all that
    there are; name: what the progress bar says.

    Raises UserError at the first that is unreadable, of another size than its image, or holds an id outside the classes.
    """

    def read(position: int) -> None:
        dataset.read(position)
        if dataset.has_graph:
            dataset.read_graph(position)

    positions = np.unique(np.linspace(0, len(dataset) - 1, min(MOST_READ, len(dataset))).round().astype(int)).tolist()
    with (
        ThreadPoolExecutor() as pool,
        tqdm(desc=f"checking {name}", total=len(positions), unit="image", leave=False, disable=None) as bar,
    ):
        for _ in pool.map(read, positions):
            bar.update()


def list_faults(train: Index, val: Index) -> list[str]:
    """What is wrong with the two splits' lists though every file is there: names twice in one, or in both."""
    faults = []
    for split, index in (("training", train), ("validation", val)):
        twice = [name for name, count in Counter(index.names).items() if count > 1]
        if twice:
            faults.append(f"{twice[0]} is in the {split} list more than once ({len(twice)} names are)")
    held_out = set(val.names)
    leaking = [name for name in train.names if name in held_out]
    if leaking:
        faults.append(f"{leaking[0]} is in the training and in the validation list ({len(leaking)} names are)")
    return faults
