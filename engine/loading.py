"""Batches and images as they come from loader workers, and what becomes of workers that die or hang."""

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


class Watched(Dataset):
    """A data set that notes which process reads which image.

    reading: (workers, 4) int64 in shared memory, a row for each worker: the process id; the item's epoch (-1 where the key has
    none) and position; 1 while the worker reads the item, 0 afterwards.
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
        """The images that these processes read last; without any, those that are being read."""
        rows = [row for row in self.reading.tolist() if (row[0] in pids if pids else row[3] == 1)]
        keys = [(epoch, position) if epoch >= 0 else position for _, epoch, position, _ in rows]
        return [index.images[position] for key in keys for index, position in self.dataset.sources(key)]


class Loaders:
    """A run's training batches and validation images, and what its workers read when one dies or hangs."""

    def __init__(self, train_set: SegmentationDataset, val_set: SegmentationDataset, settings: TrainConfig, process: Process):
        self.train_set, self.val_set = Watched(train_set, settings.workers), Watched(val_set, settings.workers)
        self.settings, self.process = settings, process

    def training(self, steps: int, first: int) -> Iterator[Batch]:
        """The batches of steps `first` to `steps` in order, this process's share of each, in `accumulate` parts a step."""
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
        """`split_images` of the validation split."""
        return split_images(self.val_set, self.process, self.settings.workers, self.settings.loader_timeout)

    def explain_failures(self) -> AbstractContextManager[None]:
        """`explain_failures` of both splits."""
        return explain_failures([self.train_set, self.val_set], self.settings.loader_timeout)


def split_images(watched: Watched, process: Process, workers: int, timeout: int) -> tuple[list[int], DataLoader]:
    """This process's positions of a split, and the items at them, one by one."""
    positions = positions_of_process(len(watched), process)
    return positions, loader(watched, workers, timeout, batch_size=None, sampler=positions)


def loader(watched: Watched, workers: int, timeout: int, **how: Any) -> DataLoader:
    """A DataLoader whose workers leave signals to the main process, and may take `timeout` seconds for a batch."""
    return DataLoader(
        watched,
        num_workers=workers,
        worker_init_fn=leave_to_main,
        timeout=timeout if workers else 0,
        generator=torch.Generator(),  # else it draws from the one that the step's dropout comes from
        **how,
    )


@contextmanager
def explain_failures(watched: Sequence[Watched], timeout: int) -> Iterator[None]:
    """Within it, a worker that dies, or takes longer than `timeout` seconds, is a Failure that names the file."""
    try:
        try:
            yield
        except (ConnectionError, EOFError):  # of the socket that batches come through: its worker has gone
            time.sleep(1)  # for the end of that worker, which the RuntimeError below tells of
            raise
    except RuntimeError as error:  # torch raises it from a signal handler, so wherever the program is
        dead = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", str(error))
        if not dead and "DataLoader timed out" not in str(error):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises again at every child's end
        pids = [int(pid) for pid in dead[1].split(",")] if dead else []
        files = " or ".join(str(file) for data in watched for file in data.read_by(pids)) or "no file"
        if dead:
            raise Failure(f"a loader worker died reading {files}: no memory left, or a file that kills its reader") from error
        raise Failure(f"no batch came in {timeout} s; the workers are at {files}") from error


@atexit.register
def kill_workers() -> None:
    """Ends workers that still run when the program ends. They ignore the SIGTERM (`leave_to_main`) that multiprocessing sends
    them then, and it would wait for ever for one that hangs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where a worker is killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def augmentation(data: DataConfig, stream: Literal["main", "labelled"] = "main") -> Augmentation:
    """The augmentation of a stream's images, by the settings."""
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
    """The images of each batch, `accumulate` batches a step."""
    parts = settings.accumulate
    return TrainingOrder(
        length, settings.batch_size // parts, steps * parts, settings.seed, process.rank, process.world, first * parts
    )


def check_batch(settings: TrainConfig, process: Process, fewest_images: int) -> None:
    """Raises UserError if a batch does not divide, or leaves a pass with less than `fewest_images`."""
    if settings.batch_size % (settings.accumulate * process.world):
        raise UserError(
            f"--train.batch_size {settings.batch_size} does not divide into --train.accumulate {settings.accumulate} parts "
            f"on {process.world} processes"
        )
    apart = 1 if process.device.type == "cuda" else process.world  # on GPUs batch norm is over all processes' images
    if settings.batch_size < settings.accumulate * apart * fewest_images:
        raise UserError(
            f"--train.batch_size {settings.batch_size} is too small: this network needs {fewest_images} images in each of "
            f"{settings.accumulate} parts on {apart} processes"
        )
