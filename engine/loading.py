"""Loader workers: their batches, and what becomes of those that die or hang."""

import os
import re
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from config import TrainConfig
from datasets.segmentation import SegmentationDataset, TrainingOrder, collate
from engine.distributed import Process
from engine.interrupt import leave_to_main
from errors import Failure, UserError


class Watched(Dataset):
    """A data set that notes which process reads which image.

    reading: (workers, 2) int64 in shared memory: each worker's process id, and the position of its image.
    """

    def __init__(self, dataset: SegmentationDataset, workers: int):
        self.dataset = dataset
        self.reading = torch.full((workers, 2), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = torch.tensor([os.getpid(), key[1] if isinstance(key, tuple) else key])
        return self.dataset[key]

    def files(self, pids: list[int]) -> str:
        """The images that these processes read last, or any, where none is given."""
        images = self.dataset.index.images
        read = [images[position] for pid, position in self.reading.tolist() if position >= 0 and (pid in pids or not pids)]
        return " or ".join(map(str, read)) or "no file yet"


def training_batches(
    dataset: SegmentationDataset, settings: TrainConfig, steps: int, first: int, process: Process
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of steps `first` to `steps` in order, this process's share of each, in `accumulate` parts a step.

    Raises Failure, naming the file, where a worker dies or takes longer than `loader_timeout`.
    """
    order = training_order(len(dataset), settings, steps, first, process)
    return _load(dataset, settings, batch_sampler=order, collate_fn=collate, pin_memory=process.device.type == "cuda")


def validation_items(
    dataset: SegmentationDataset, settings: TrainConfig, process: Process
) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of a split, image by image. Raises Failure as `training_batches` does."""
    return _load(dataset, settings, batch_size=None, sampler=range(process.rank, len(dataset), process.world))


def _load(dataset: SegmentationDataset, settings: TrainConfig, **how: object) -> Iterator[dict[str, torch.Tensor]]:
    watched = Watched(dataset, settings.workers)
    how |= {
        "num_workers": settings.workers,
        "worker_init_fn": leave_to_main,
        "timeout": settings.loader_timeout if settings.workers else 0,
        "generator": torch.Generator(),  # else it draws from the one that the step's dropout comes from
    }
    try:
        yield from DataLoader(watched, **how)
    except RuntimeError as error:
        dead = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", str(error))
        if dead:
            files = watched.files([int(pid) for pid in dead[1].split(",")])
            raise Failure(f"a loader worker died reading {files}: out of memory, or a file that kills its reader") from error
        if "timed out" in str(error):
            limit = f"{settings.loader_timeout} s (--train.loader_timeout)"
            raise Failure(f"no batch came in {limit}; the workers are at {watched.files([])}") from error
        raise


def training_order(length: int, settings: TrainConfig, steps: int, first: int, process: Process) -> TrainingOrder:
    """The images of each batch, `accumulate` batches a step."""
    parts = settings.accumulate
    return TrainingOrder(
        length, settings.batch_size // parts, steps * parts, settings.seed, process.rank, process.world, first * parts
    )


def check_batch(settings: TrainConfig, process: Process, fewest_images: int) -> None:
    """Raises UserError where a batch does not divide, or leaves a pass with less than `fewest_images`."""
    if settings.batch_size % (settings.accumulate * process.world):
        raise UserError(
            f"--train.batch_size {settings.batch_size} does not divide into --train.accumulate {settings.accumulate} parts "
            f"on {process.world} processes"
        )
    if settings.batch_size < settings.accumulate * process.world * fewest_images:
        raise UserError(
            f"--train.batch_size {settings.batch_size} is too small: this network needs {fewest_images} images in each of "
            f"{settings.accumulate} parts on {process.world} processes"
        )
