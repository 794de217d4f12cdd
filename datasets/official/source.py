"""What every reader of an official download returns, for tools.prepare to write in one layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError


@dataclass(frozen=True)
class Source:
    """An official download. Nothing is decoded yet: `read` does that, file by file."""

    classes: tuple[str, ...]
    splits: dict[str, list[str]]
    """image names of each split"""
    images: dict[str, Path]
    """image files by name, which stay where they are"""
    maps: dict[str, dict[str, Any]]
    """folder to write -> image name -> what `read` takes; the folder JPEGImages holds grey pictures, all others labels"""
    read: Callable[[Any], np.ndarray]
    """an entry of `maps` -> (H, W) uint8; raises UserError"""
    tags: dict[str, list[str]] | None = None
    """classes that an image shows, where the download says so"""


def require(path: Path, what: str, page: str) -> Path:
    """`path`, where it exists; else UserError, which names the official page that has it."""
    if not path.exists():
        raise UserError(f"{path} not found: {what}, from {page}")
    return path
