"""One process or many (torchrun), with one device each, and how they divide work."""

import gc
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
    """The rank of this process, the number of processes, and the device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def pick_device(device: str) -> torch.device:
    """Returns the device for auto, cpu or cuda. Under torchrun, each process of a machine has its own GPU.

    Raises UserError for cuda without a GPU, or if a machine has fewer GPUs than processes.
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
    # Before any thread is started, because new threads copy this setting. Most entries of an N x N softmax may be below
    # float32's normal range (1e-38). Processors compute several times slower with these numbers.
    torch.set_flush_denormal(True)
    return torch.device("cpu")


def pick_precision(device: torch.device, precision: Precision) -> Precision:
    """Returns fp32, bf16 or fp16. auto is bf16 if `device` has bf16 instructions, else fp32.

    A CPU without bf16 instructions computes bf16 many times slower than fp32. Raises UserError for fp16 without CUDA.
    """
    if precision == "auto":
        return "bf16" if _computes_bf16(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("precision fp16 needs a CUDA GPU; use bf16 or fp32 on the CPU")
    return precision


def _computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions, without emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = platform.machine() in ("x86_64", "AMD64")  # here oneDNN also accepts any AVX-512
    if not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and (not x86 or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def joined(device: str, patience: timedelta | None = None) -> Iterator[Process]:
    """Picks the device and joins the process group of torchrun, if any (nccl for GPUs, gloo for CPUs). Leaves it at the end.

    patience: time that a process waits for the others; None is torch's default.
    """
    place = pick_device(device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        # torchrun restarts all processes with the same store, and the store still holds the addresses of the earlier attempt.
        store, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backends = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=world, timeout=patience)
    yield Process(rank, world, place)
    # Not after an exception: this process would wait for the others, and the others for this process.
    if dist.is_initialized():
        gc.collect()  # a forgotten DistributedDataParallel would keep the group's threads, which can crash Python at its end
        dist.destroy_process_group()


def max_over_processes(number: int) -> int:
    """Returns the largest number (0 to 255) of all processes. All processes must call this. Does not wait for a GPU."""
    if not dist.is_initialized():
        return number
    seen = torch.tensor(number, dtype=torch.uint8)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return int(seen)


def gathered(value: object) -> list:
    """Returns the values of all processes by rank on the main process, else an empty list. All processes must call this."""
    if not dist.is_initialized():
        return [value]
    values: list[object] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Returns the mean of a tensor over all processes, on every process. All processes must call this."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def sum_over_processes(counts: torch.Tensor) -> None:
    """Adds up the counts of all processes, a tensor on the CPU, in place. All processes must call this."""
    if dist.is_initialized():
        dist.all_reduce(counts)


def share_buffers(module: torch.nn.Module) -> None:
    """Copies the main process's buffers to all processes, as checkpoints hold these buffers. All processes must call this."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def wait_for_all() -> None:
    """Returns when every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def items_of_shard(items: Sequence[T], shard: str) -> Sequence[T]:
    """Returns the items of shard "i/n": every n-th item from the i-th. Under torchrun, "1/1" is this process's part.

    Raises UserError unless 1 <= i <= n.
    """
    if shard == "1/1" and "WORLD_SIZE" in os.environ:
        shard = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard!r}: write i/n with 1 <= i <= n, such as 1/4")
    return items[int(match[1]) - 1 :: int(match[2])]


@contextmanager
def joined_until_all_finish() -> Iterator[Process]:
    """A context at the end of a tool that divides its work under torchrun. Inside, the processes can communicate. The context
    ends for all processes together, because torchrun kills the others when a process exits with an error code."""
    with joined("cpu", timedelta(days=7)) as process:
        yield process
        wait_for_all()


def move_to_device(module: torch.nn.Module, device: torch.device) -> None:
    """Moves a network to a device, with channels-last weights like the images."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the autocast context: fp32 (no autocast), bf16 or fp16."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
