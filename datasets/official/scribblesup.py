"""The ScribbleSup annotations (Lin et al., CVPR 2016): strokes in XML, for PASCAL VOC and for Pascal Context.

<annotation><filename>2007_000032</filename><size><width>500</width><height>281</height></size>
  <polygon><tag>plane</tag><point><X>110</X><Y>126</Y></point> ... </polygon> ... </annotation>
"""

import difflib
import math
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from datasets.drawing.strokes import line
from datasets.files import MOST_PIXELS, UNLABELLED
from datasets.official.source import read_xml
from errors import UserError

# Names of the same class in VOC, in Context's 59 classes and in the annotations.
SYNONYMS = (
    {"aeroplane", "airplane", "plane"},
    {"bicycle", "bike"},
    {"diningtable", "table"},
    {"motorbike", "motorcycle", "motor"},
    {"pottedplant", "plant"},
    {"sofa", "couch"},
    {"tvmonitor", "monitor", "tv"},
    {"person", "people"},
    {"bedclothes", "bedcloth"},
    {"cloth", "clothes"},
)


def read_annotation(path: Path, classes: tuple[str, ...], width: int) -> np.ndarray:
    """Draws an annotation file as a label map: (H, W) uint8, 255 = unlabelled. Later strokes cover earlier strokes.

    classes: names in id order. width: of a stroke, pixels. Raises UserError for another format, an unknown tag, or XML
    entities. XML entities are refused unread: annotations do not need them.
    """
    root = read_xml(path)
    rows, columns = (int(_number(root, f"size/{side}", path)) for side in ("height", "width"))
    if min(rows, columns) < 1 or rows * columns > MOST_PIXELS:
        raise UserError(f"{path}: {columns}x{rows} is not the size of an image")
    label = np.full((rows, columns), UNLABELLED, np.uint8)
    for polygon in root.iter("polygon"):
        tag = (polygon.findtext("tag") or "").strip()
        points = np.array([[_number(point, axis, path) for axis in ("X", "Y")] for point in polygon.iter("point")])
        number = class_of(tag, classes, path)
        if points.size:
            label[line((rows, columns), points, width)] = number
    return label


def class_of(tag: str, classes: tuple[str, ...], path: Path) -> int:
    """Returns the class id of a tag, which is a class name or a synonym. Raises UserError for an unknown tag."""
    plain = {_plain(name): number for number, name in enumerate(classes)}
    names = {_plain(tag)}
    for group in SYNONYMS:
        names |= group if names & group else set()
    # A class name wins over its synonyms: Context has "table", VOC has "diningtable".
    for name in [_plain(tag), *sorted(names)]:
        if name in plain:
            return plain[name]
    near = difflib.get_close_matches(_plain(tag), plain, 1)
    hint = f"; the nearest is {classes[plain[near[0]]]}" if near else ""
    raise UserError(f"{path}: the tag {tag!r} is none of the {len(classes)} classes{hint}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _number(element: Element, name: str, path: Path) -> float:
    text = element.findtext(name)
    if text is None:
        raise UserError(f"{path}: {name} is missing, a number is expected")
    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{path}: {name} is {text!r}, a number is expected") from error
    if not math.isfinite(value):
        raise UserError(f"{path}: {name} is {text}, a finite number is expected")
    return value
