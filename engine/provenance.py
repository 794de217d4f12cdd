"""Where a result comes from: hashes, versions, and the record beside the files of a tool."""

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

from datasets.files import write_text
from errors import UserError

REPOSITORY = Path(__file__).parent.parent


def commit() -> str | None:
    """Returns the commit of the running code, with "-dirty" if files differ from the commit; None outside a git checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def relative(argument: str) -> str:
    """Returns a command's argument with an absolute path made relative, so that records name no folders of a machine."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + os.path.relpath(value) if value.startswith("/") else argument


def circumstances() -> dict:
    """Returns what a result depends on beside its settings: command, commit, and versions of Python and the libraries."""
    versions = {module.__name__: str(module.__version__) for module in (torch, torchvision, np, cv2)}
    return {
        "command": shlex.join(map(relative, sys.orig_argv)),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
    }


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def lines_sha256(lines: Iterable[object]) -> str:
    """Returns the SHA-256 of `lines` as lines of text, in hexadecimal."""
    return hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest()


def read_record(record: Path) -> dict | None:
    """Returns the content of a record of `open_output_folder`, or None if the record is missing or damaged."""
    try:
        there = json.loads(record.read_text()) if record.is_file() else None
    except ValueError:
        return None
    return there if isinstance(there, dict) else None


def open_output_folder(record: Path, conditions: dict, notes: dict | None = None) -> None:
    """Makes the folder of `record` and writes the conditions (and notes) of its files to `record`, as JSON. If the folder has
    the same conditions already, a later call may continue in the folder.

    Raises UserError if the folder has other conditions, or holds other files.
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
            raise UserError(f"{out} holds other files already: choose another --out")
        differing = [name for name, value in conditions.items() if name not in there or there[name] != value]
        if differing:
            raise UserError(
                f"{out} was made with another {', '.join(differing)}: delete the folder, or choose another folder "
                "(--out; PSEUDO_LABELS or SUPERPIXELS of the stage scripts)"
            )
        return
    write_text(record, json.dumps(conditions | (notes or {}), indent=2) + "\n")
