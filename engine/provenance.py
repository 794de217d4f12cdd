"""Where a result comes from, and how its making is divided over machines."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
import torchvision

from datasets.files import whole
from errors import UserError

T = TypeVar("T")

REPOSITORY = Path(__file__).parent.parent


def commit() -> str | None:
    """The commit of the code that runs, with "-dirty" after it where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def circumstances() -> dict:
    """What a result depends on beside its settings: the command, the code's commit and the versions of what it runs on."""
    versions = {module.__name__: str(module.__version__) for module in (torch, torchvision, np, cv2)}
    return {
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
    }


def share(items: Sequence[T], shard: str) -> Sequence[T]:
    """The part of `items` that a shard "i/n" does: every n-th, from the i-th; "1/1" under torchrun is this process's part.

    Raises UserError for anything but 1 <= i <= n.
    """
    if shard == "1/1" and "WORLD_SIZE" in os.environ:
        shard = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard}: write i/n with 1 <= i <= n, such as 1/4")
    return items[int(match[1]) - 1 :: int(match[2])]


def claim(record: Path, conditions: dict, notes: dict | None = None) -> None:
    """Makes the folder of `record`, a JSON of the conditions (and notes) that the files in it are made under; or finds it made
    under the same conditions, so that a later call may go on in it.

    Raises UserError if the folder holds files of other conditions, or of something else.
    """
    conditions = json.loads(json.dumps(conditions))
    out = record.parent
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    # Another shard may be writing its record at this moment.
    holds = {path.name for path in out.iterdir() if not path.name.endswith(".part")} if out.is_dir() else set()
    if holds - {record.name}:
        try:
            there = json.loads(record.read_text()) if record.is_file() else None
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise UserError(f"{out} holds something else already: choose another --out")
        differing = [name for name, value in conditions.items() if name not in there or there[name] != value]
        if differing:
            raise UserError(
                f"{out} was made with another {', '.join(differing)}: delete it, or choose another folder "
                "(--out; PSEUDO_LABELS or SUPERPIXELS of the stage scripts)"
            )
        return
    with whole(record) as temporary:
        temporary.write_text(json.dumps(conditions | (notes or {}), indent=2) + "\n")
