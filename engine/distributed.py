"""One process or many (torchrun), one device each, and how work is shared out over them."""

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from config import Precision
from errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process's place among all and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def pick_device(device: str) -> torch.device:
    """The device for auto, cpu or cuda; under torchrun each process of a machine has its own GPU.

    Raises UserError for CUDA without a GPU, or with fewer than processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no usable CUDA GPU; use cpu or auto")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        gpus = torch.cuda.device_count()
        if place.index >= gpus:
            raise UserError(f"this machine has {gpus} GPUs, too few for its processes: give torchrun --nproc_per_node {gpus}")
        torch.cuda.set_device(place)
        return place
    # Before any thread is started, which then do the same. Most of an N x N matrix of a softmax may be below float32's normal
    # range (1e-38), with which processors compute several times slower.
    torch.set_flush_denormal(True)
    return torch.device("cpu")


def pick_precision(device: torch.device, precision: Precision) -> Precision:
    """fp32, bf16 or fp16: for auto, bf16 where `device` has instructions for it, else fp32.

    A CPU without them computes bf16 too, but many times slower than fp32. Raises UserError for fp16 without CUDA.
    """
    if precision == "auto":
        return "bf16" if _computes_bf16(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("precision fp16 needs a CUDA GPU; use bf16 or fp32 on the CPU")
    return precision


def _computes_bf16(device: torch.device) -> bool:
    """By instructions of its own, not by emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = platform.machine() in ("x86_64", "AMD64")  # where oneDNN counts any AVX-512
    if not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (not x86 or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def joined(device: str, patience: timedelta | None = None) -> Iterator[Process]:
    """Picks the device and joins torchrun's group where there is one (nccl for GPUs, gloo for CPUs); leaves it at the end.

    patience: how long a process waits for the others, torch's default where None.
    """
    place = pick_device(device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        # torchrun starts all processes again in one store, where those of the attempt before have left their addresses.
        store, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backends = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=world, timeout=patience)
    yield Process(rank, world, place)
    # Not after an exception: leaving waits for the others, who wait for this process.
    if dist.is_initialized():
        dist.destroy_process_group()


def max_over_processes(number: int) -> int:
    """The largest of all processes' numbers, 0 to 255; all of them call it. Nothing waits for a GPU."""
    if not dist.is_initialized():
        return number
    seen = torch.tensor(number, dtype=torch.uint8)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return int(seen)


def gathered(value: object) -> list:
    """Every process's value, in the order of their ranks, on the main process; nothing elsewhere. All of them call it."""
    if not dist.is_initialized():
        return [value]
    values: list[object] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on each of them; all of them call it."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def sum_over_processes(counts: torch.Tensor) -> None:
    """Adds up all processes' counts, a tensor on the CPU, in place; all of them call it."""
    if dist.is_initialized():
        dist.all_reduce(counts)


def share_buffers(module: torch.nn.Module) -> None:
    """Gives all processes the main process's buffers, whose running statistics are what it saves; all of them call it."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def items_of_shard(items: Sequence[T], shard: str) -> Sequence[T]:
    """The part of `items` that a shard "i/n" does: every n-th, from the i-th; "1/1" under torchrun is this process's part.

    Raises UserError for anything but 1 <= i <= n.
    """
    if shard == "1/1" and "WORLD_SIZE" in os.environ:
        shard = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard}: write i/n with 1 <= i <= n, such as 1/4")
    return items[int(match[1]) - 1 :: int(match[2])]


@contextmanager
def leaving_together() -> Iterator[Process]:
    """For tools that share their work under torchrun, before they end. Within it the processes can talk; it ends when every
    process has come there, since the first to end with an exit code would take the others down."""
    with joined("cpu", timedelta(days=7)) as process:
        yield process
        wait_for_all()


def place(module: torch.nn.Module, device: torch.device) -> None:
    """Moves a network to a device, its weights with channels last, as its images are."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of mixed precision: fp32 (none), bf16 or fp16."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
