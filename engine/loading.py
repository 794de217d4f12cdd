"""Loading of batches and images by loader workers, and errors for workers that die or hang."""

import atexit
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from config import DataConfig, TrainConfig
from datasets.batch import Batch, Item, collate
from datasets.segmentation import SegmentationDataset, TrainingOrder
from datasets.transforms import Augmentation
from engine.distributed import Process
from engine.inference import positions_of_process
from engine.interrupt import leave_to_main
from errors import Failure, UserError


class TrackedDataset(Dataset):
    """A data set that records which loader worker reads which image.

    reading: (workers, 4) int64 in shared memory. The row of a worker holds the process id; the epoch of the item (-1 if the key
    has no epoch); the position of the item; 1 while the worker reads the item, 0 afterwards.
    """

    def __init__(self, dataset: SegmentationDataset, workers: int):
        self.dataset = dataset
        self.reading = torch.full((workers, 4), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[key]
        epoch, position = key if isinstance(key, tuple) else (-1, key)
        self.reading[worker.id] = torch.tensor([os.getpid(), epoch, position, 1])
        item = self.dataset[key]
        self.reading[worker.id, 3] = 0
        return item

    def read_by(self, pids: list[int]) -> list[Path]:
        """Returns the images that the processes `pids` read last. Without `pids`, returns all images that are being read."""
        rows = [row for row in self.reading.tolist() if (row[0] in pids if pids else row[3] == 1)]
        keys = [(epoch, position) if epoch >= 0 else position for _, epoch, position, _ in rows]
        return [index.images[position] for key in keys for index, position in self.dataset.sources(key)]


class Loaders:
    """Training batches and validation images of a run. Errors name the files of a worker that dies or hangs."""

    def __init__(self, train_set: SegmentationDataset, val_set: SegmentationDataset, settings: TrainConfig, process: Process):
        self.train_set, self.val_set = TrackedDataset(train_set, settings.workers), TrackedDataset(val_set, settings.workers)
        self.settings, self.process = settings, process

    def training(self, steps: int, first: int) -> Iterator[Batch]:
        """Returns this process's share of the batches of steps `first` to `steps`, in order, in `accumulate` parts a step."""
        settings = self.settings
        order = training_order(len(self.train_set), settings, steps, first, self.process)
        pin = self.process.device.type == "cuda"
        return iter(
            loader(
                self.train_set,
                settings.workers,
                settings.loader_timeout,
                batch_sampler=order,
                collate_fn=collate,
                pin_memory=pin,
            )
        )

    def validation(self) -> tuple[list[int], DataLoader]:
        """Returns `split_images` of the validation split."""
        return split_images(self.val_set, self.process, self.settings.workers, self.settings.loader_timeout)

    def explain_failures(self) -> AbstractContextManager[None]:
        """Returns `explain_failures` of both splits."""
        return explain_failures([self.train_set, self.val_set], self.settings.loader_timeout)


def split_images(watched: TrackedDataset, process: Process, workers: int, timeout: int) -> tuple[list[int], DataLoader]:
    """Returns this process's positions in a split, and a loader of the items at these positions, one by one."""
    positions = positions_of_process(len(watched), process)
    return positions, loader(watched, workers, timeout, batch_size=None, sampler=positions)


def loader(watched: TrackedDataset, workers: int, timeout: int, **how: Any) -> DataLoader:
    """Returns a DataLoader. Its workers ignore stop signals and may take `timeout` seconds for a batch."""
    return DataLoader(
        watched,
        num_workers=workers,
        worker_init_fn=leave_to_main,
        timeout=timeout if workers else 0,
        generator=torch.Generator(),  # the default generator also draws the dropout of a step
        **how,
    )


@contextmanager
def explain_failures(watched: Sequence[TrackedDataset], timeout: int) -> Iterator[None]:
    """A context that raises Failure with the file name if a worker dies or takes longer than `timeout` seconds."""
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # the worker at the other end of a socket has died
            time.sleep(1)  # until torch raises the RuntimeError below for this worker
            raise
    except RuntimeError as error:  # a signal handler of torch raises this anywhere in the program
        dead = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", str(error))
        if not dead and "DataLoader timed out" not in str(error):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again at the end of every child
        pids = [int(pid) for pid in dead[1].split(",")] if dead else []
        files = " or ".join(str(file) for data in watched for file in data.read_by(pids)) or "no file"
        if dead:
            raise Failure(f"a loader worker died reading {files}: use fewer workers, or replace a damaged file") from error
        raise Failure(f"no batch came in {timeout} s; the workers read {files}: check these files and the disk") from error


@atexit.register
def kill_workers() -> None:
    """Ends workers that still run at the end of the program. Workers ignore the SIGTERM of multiprocessing (`leave_to_main`),
    and multiprocessing would wait forever for a hanging worker."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for a killed worker
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def augmentation(data: DataConfig, stream: Literal["main", "labelled", "partner", "strong"] = "main") -> Augmentation:
    """Returns the augmentation of the images of a stream."""
    place = Augmentation(data.crop, data.scale, data.rotation, data.rotation_probability, data.flip)
    if stream not in data.photometric:
        return place
    return replace(
        place,
        blur=data.blur,
        blur_sigma=data.blur_sigma,
        jitter=data.jitter,
        jitter_strength=data.jitter_strength,
        grey=data.grey,
    )


def training_order(length: int, settings: TrainConfig, steps: int, first: int, process: Process) -> TrainingOrder:
    """Returns the images of each batch in order, `accumulate` batches a step."""
    parts = settings.accumulate
    return TrainingOrder(
        length, settings.batch_size // parts, steps * parts, settings.seed, process.rank, process.world, first * parts
    )


def check_batch(settings: TrainConfig, process: Process, fewest_images: int, fewest_in_process: int) -> None:
    """Raises UserError if a batch does not divide evenly, or if a forward pass gets fewer than `fewest_images` (on GPUs: of all
    processes) or than `fewest_in_process` images."""
    if settings.batch_size % (settings.accumulate * process.world):
        raise UserError(
            f"--train.batch_size {settings.batch_size} does not divide into --train.accumulate {settings.accumulate} parts "
            f"on {process.world} processes: choose a multiple of {settings.accumulate * process.world}"
        )
    apart = 1 if process.device.type == "cuda" else process.world  # on GPUs, batch norm is over the images of all processes
    for images, places in ((fewest_images, apart), (fewest_in_process, process.world)):
        if settings.batch_size < settings.accumulate * places * images:
            raise UserError(
                f"--train.batch_size {settings.batch_size} is too small: this network needs {images} images in each of "
                f"{settings.accumulate} parts on {places} processes: choose at least {settings.accumulate * places * images}"
            )
