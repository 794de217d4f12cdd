"""`Source`, which every reader of an official download returns. tools.prepare writes a source in VOC's layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from errors import UserError, extra


@dataclass(frozen=True)
class Source:
    """An official download. `read` decodes it file by file."""

    classes: tuple[str, ...]
    splits: dict[str, list[str]]
    """image names of each split"""
    images: dict[str, Path]
    """image files by name; tools.prepare links them"""
    maps: dict[str, dict[str, Any]]
    """folder to write -> image name -> argument of `read`; the folder JPEGImages gets grey images, other folders get labels"""
    read: Callable[[Any], np.ndarray]
    """an entry of `maps` -> (H, W) uint8; raises UserError for a bad file"""
    tags: dict[str, list[str]] | None = None
    """classes that each image shows; None: the download does not say"""
    spacing: dict[str, tuple[float, float, float]] | None = None
    """volume -> distance of its slices, rows and columns in mm; None: the download does not say"""


def require(path: Path, what: str, page: str) -> Path:
    """Returns `path` if it exists. Otherwise raises UserError, which names the official page."""
    if not path.exists():
        raise UserError(f"{path} not found: download {what} from {page}")
    return path


def read_xml(path: Path) -> Element:
    """Returns the root of an XML file. Raises UserError if the file is missing, not well-formed, or has XML entities."""
    defused = extra("defusedxml")
    try:
        return extra("defusedxml.ElementTree").parse(path).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except defused.DefusedXmlException as error:
        raise UserError(f"{path}: XML with entities or a document type is refused ({type(error).__name__})") from error
    except (OSError, ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise UserError(f"{path}: not well-formed XML ({error})") from error
