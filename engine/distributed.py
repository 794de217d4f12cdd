"""One process or many (torchrun), one device each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from errors import UserError


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

    Raises UserError for CUDA without a GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: this machine has no usable CUDA GPU; use cpu or auto")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
        return place
    return torch.device("cpu")


def pick_precision(device: torch.device, precision: str) -> str:
    """fp32, bf16 or fp16: for auto, bf16 where `device` has instructions for it, else fp32.

    A CPU without them computes bf16 too, but many times slower than fp32. Raises UserError for fp16 without CUDA.
    """
    if precision == "auto":
        supported = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bf16" if supported else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("precision fp16 needs a CUDA GPU; use bf16 or fp32 on the CPU")
    return precision


@contextmanager
def joined(device: str) -> Iterator[Process]:
    """Picks the device and joins torchrun's group where there is one (nccl for GPUs, gloo for CPUs); leaves it at the end."""
    place = pick_device(device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        # torchrun starts all processes again in one store, where those of the attempt before have left their addresses.
        store, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backends = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=world)
    yield Process(rank, world, place)
    # Not after an exception: leaving waits for the others, who wait for this process.
    if dist.is_initialized():
        dist.destroy_process_group()


def anywhere(flag: bool, process: Process) -> bool:
    """Whether `flag` is true on any process; all of them call it. Nothing waits for a GPU."""
    if process.world == 1:
        return flag
    seen = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return bool(seen)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on each of them; all of them call it."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of mixed precision: fp32 (none), bf16 or fp16."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
