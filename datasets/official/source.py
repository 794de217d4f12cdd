"""What every reader of an official download returns, for tools.prepare to write in one layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from errors import UserError, extra


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


def read_xml(path: Path) -> Element:
    """The root of an XML file. Raises UserError if it is missing, not well-formed, or has entities (annotations have none)."""
    defused = extra("defusedxml")
    try:
        return extra("defusedxml.ElementTree").parse(path).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except defused.DefusedXmlException as error:
        raise UserError(f"{path}: XML with entities or a document type is not read ({type(error).__name__})") from error
    except (OSError, ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise UserError(f"{path}: not well-formed XML ({error})") from error
