"""Reads a split once, before anything is trained on it."""

from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from datasets.segmentation import SegmentationDataset


def check(dataset: SegmentationDataset, name: str) -> None:
    """Reads every image, label and superpixel file of `dataset` (without augmentation); name: what the progress bar says.

    Raises UserError at the first that is unreadable, of another size than its image, or holds an id outside the classes.
    """
    with ThreadPoolExecutor() as pool:
        for _ in tqdm(
            pool.map(dataset.read, range(len(dataset))),
            f"checking {name}",
            len(dataset),
            leave=False,
            unit="image",
            disable=None,
        ):
            pass
