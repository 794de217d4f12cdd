"""train.py with frozen batch norm and no dropout. A step then depends on its images alone, not on their order in processes.

With STEADY_DIE=FILE, process 1 fails in the third step of the first attempt and writes the time into FILE. With STEADY_STOP=1,
process 1 gets SIGTERM in that step. UniMatch's CutMix draws no boxes.
"""

import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

import train
from engine import preparation
from errors import run
from methods import build_method, unimatch
from methods.cc4s import CC4S


def steady_method(*arguments: object) -> nn.Module:
    """Builds a method with frozen batch norm and no dropout."""
    method = build_method(*arguments)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = partial(_unchanged, module)
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return method


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def begin_step(self: CC4S, step: int, epoch: float) -> None:
    """Fails or stops process 1 as the environment variables say."""
    is_target = os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if step == 2 and is_target:
        if os.environ.get("STEADY_STOP"):
            os.kill(os.getpid(), signal.SIGTERM)
        if os.environ.get("STEADY_DIE"):
            Path(os.environ["STEADY_DIE"]).write_text(str(time.time()))
            raise RuntimeError("rank 1 gives up")


def main() -> int:
    """Runs train.py. Raises RuntimeError if threads of the process group outlive it: they can crash Python at its end."""
    code = train.main()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in names if "gloo" in name]
    if left:
        raise RuntimeError(f"threads of the process group are left: {left}")
    return code


if __name__ == "__main__":
    torch.set_num_threads(1)
    preparation.build_method = steady_method
    CC4S.begin_step = begin_step
    unimatch.cutmix_boxes = partial(unimatch.cutmix_boxes, probability=0)
    run(main)
