"""One process or many (torchrun), one device each."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

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


def start(device: str, precision: str) -> Process:
    """Joins torchrun's group where there is one (nccl on GPUs, gloo on CPUs) and picks the device: auto, cpu or cuda.

    Raises UserError for CUDA without a GPU, or fp16 without CUDA.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--train.device cuda: this machine has no usable CUDA GPU; use cpu or auto")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    if precision == "fp16" and kind == "cpu":
        raise UserError("--train.precision fp16 needs a CUDA GPU; use bf16 or fp32 on the CPU")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world > 1:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Process(rank, world, place)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    """Leaves the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of mixed precision: fp32 (none), bf16 or fp16."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
