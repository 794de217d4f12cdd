"""Where a result comes from: hashes, versions, and the record beside what a tool writes."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from datasets.files import atomic_write
from errors import UserError

REPOSITORY = Path(__file__).parent.parent


def commit() -> str | None:
    """The commit of the code that runs, with "-dirty" after it where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def relative(argument: str) -> str:
    """An argument of a command, an absolute path in it made relative: records name no machine's folders."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + os.path.relpath(value) if value.startswith("/") else argument


def circumstances() -> dict:
    """What a result depends on beside its settings: the command, the code's commit and the versions of what it runs on."""
    versions = {module.__name__: str(module.__version__) for module in (torch, torchvision, np, cv2)}
    return {
        "command": shlex.join(map(relative, sys.orig_argv)),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
    }


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def lines_sha256(lines: Iterable[object]) -> str:
    """The SHA-256 of these as lines of text, in hexadecimal."""
    return hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()


def read_record(record: Path) -> dict | None:
    """The content of a record that `claim` wrote; None where there is none that can be read."""
    try:
        there = json.loads(record.read_text()) if record.is_file() else None
    except ValueError:
        return None
    return there if isinstance(there, dict) else None


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
        there = read_record(record)
        if there is None:
            raise UserError(f"{out} holds something else already: choose another --out")
        differing = [name for name, value in conditions.items() if name not in there or there[name] != value]
        if differing:
            raise UserError(
                f"{out} was made with another {', '.join(differing)}: delete it, or choose another folder "
                "(--out; PSEUDO_LABELS or SUPERPIXELS of the stage scripts)"
            )
        return
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(conditions | (notes or {}), indent=2) + "\n")
