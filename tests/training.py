"""Training runs in separate processes, for tests that kill or stop them. A fork server imports this module once."""

import os
import signal
import sys
from pathlib import Path

import torch

import engine.checkpoint
import train
from errors import run

LOOP = [
    "--model.backbone", "resnet18", "--model.weights", "none", "--data.crop", "33", "--train.batch_size", "2",
    "--train.workers", "0", "--train.precision", "fp32", "--train.steps", "4", "--train.log_every", "1",
    "--train.val_steps", "2", "--train.lr", "0.01",
]  # fmt: skip
UR = ("--method.soft_entropy", "1")
BLPSEG = (
    "--method.name", "blpseg", "--method.width", "16", "--method.self_training_from", "1", "--method.threshold", "0.2",
    "--train.lr", "0.0001",
)  # fmt: skip
FLAGS = [*LOOP, *UR]


def call(out: Path, root: Path, flags: tuple[str, ...] = UR, log: Path | None = None) -> None:
    """Runs train.py like a user's command. The output goes to the file `log`."""
    if log:
        stream = open(log, "a")  # noqa: SIM115, open until the process ends
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = ["train.py", *LOOP, "--data.root", str(root), "--out", str(out), *flags]
    run(train.main)


def call_and_signal(
    out: Path,
    root: Path,
    where: str,
    time: int,
    flags: tuple[str, ...] = UR,
    signals: tuple[int, ...] = (signal.SIGKILL,),
    log: Path | None = None,
) -> None:
    """Runs train.py and sends it `signals` when it comes to `where` for the `time`-th time. `where` is `saving` (the file is
    written but not yet renamed), `saved` (the checkpoint has its name), `validating` or `stepping`."""
    owner, name = {
        "saving": (engine.checkpoint.os, "fsync"),
        "saved": (train, "save_checkpoint"),
        "validating": (train, "most_likely"),
        "stepping": (train, "forward_backward"),
    }[where]
    original, calls = getattr(owner, name), 0

    def counted(*arguments, **named):
        nonlocal calls
        calls += 1
        result = original(*arguments, **named)
        for number in signals if calls == time else ():
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, counted)
    call(out, root, flags, log)
