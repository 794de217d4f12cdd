"""Reads a split once, before anything is trained on it."""

from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from datasets.segmentation import SegmentationDataset


def check(dataset: SegmentationDataset, name: str) -> None:
    """Reads every image, label and superpixel file of `dataset` (without augmentation); name: what the progress bar says.

    Raises UserError at the first that is unreadable, of another size than its image, or holds an id outside the classes.
    """

    def read(position: int) -> None:
        dataset.read(position)
        if dataset.superpixels is not None:
            dataset.read_graph(position)

    with (
        ThreadPoolExecutor() as pool,
        tqdm(desc=f"checking {name}", total=len(dataset), unit="image", leave=False, disable=None) as bar,
    ):
        for _ in pool.map(read, range(len(dataset))):
            bar.update()
