"""Strokes: what a person draws, as vectors, and the label map that they make.

A stroke is a dict with
    id      32 hexadecimal digits that the page draws
    class   class id, or 255 to take labels away
    kind    "line": `points`, [[x, y], ...] in pixels of the picture, and `width`, the line's width in pixels;
            "region": `runs`, [start, length, ...] in row-major order, such as filled superpixels or an accepted prediction;
            an array in memory, a list in JSON
    source  "human", or "prediction" for an accepted prediction
    time    seconds since 1970
Later strokes cover earlier ones.
"""

import re
from array import array
from collections.abc import Iterable
from typing import TypeGuard

import numpy as np

from datasets.drawing.strokes import line
from datasets.files import UNLABELLED
from errors import UserError

MOST_POINTS = 20_000  # of a line
MOST_WIDTH = 400
ID = re.compile(r"[0-9a-f]{32}")


def checked(stroke: object, shape: tuple[int, int], classes: int) -> dict:
    """Returns a stroke with its known keys alone. Raises UserError for anything that a page of this project does not send.

    shape: (H, W) of the picture. classes: number of classes.
    """
    if not isinstance(stroke, dict):
        raise UserError("a stroke is an object")
    number, source, time = stroke.get("class"), stroke.get("source"), stroke.get("time")
    if not (isinstance(stroke.get("id"), str) and ID.fullmatch(stroke["id"])):
        raise UserError("the id of a stroke has 32 hexadecimal digits")
    if not _whole(number) or not (0 <= number < classes or number == UNLABELLED):
        raise UserError(f"class {number!r} is not one of the {classes} classes")
    if source not in ("human", "prediction"):
        raise UserError(f"source {source!r} is neither human nor prediction")
    if not _finite(time):
        raise UserError("time is a number of seconds")
    kept = {"id": stroke["id"], "kind": stroke.get("kind"), "class": number, "source": source, "time": time}
    if kept["kind"] == "line":
        points, width = stroke.get("points"), stroke.get("width")
        if not isinstance(points, list) or not 1 <= len(points) <= MOST_POINTS:
            raise UserError(f"a line has 1 to {MOST_POINTS} points")
        if not all(isinstance(point, list) and len(point) == 2 and all(map(_finite, point)) for point in points):
            raise UserError("a point is two numbers")
        if not _whole(width) or not 1 <= width <= MOST_WIDTH:
            raise UserError(f"the width is 1 to {MOST_WIDTH} pixels")
        return kept | {"width": width, "points": [[round(float(value), 1) for value in point] for point in points]}
    if kept["kind"] == "region":
        runs, size = stroke.get("runs"), shape[0] * shape[1]
        if not isinstance(runs, (list, array)) or not runs or len(runs) % 2 or not all(map(_whole, runs)):
            raise UserError("runs are pairs of whole numbers")
        pairs = np.array(runs, np.int64).reshape(-1, 2)
        if (pairs[:, 0] < 0).any() or (pairs[:, 1] < 1).any() or (pairs.sum(axis=1) > size).any():
            raise UserError("a run leaves the picture")
        return kept | {"runs": array("q", runs)}  # 8 bytes a number; a list takes 36
    raise UserError(f"kind {kept['kind']!r} is neither line nor region")


def draw(label: np.ndarray, strokes: Iterable[dict]) -> None:
    """Draws strokes into a label map (H, W) uint8, in place."""
    for stroke in strokes:
        if stroke["kind"] == "line":
            label[line(label.shape, np.array(stroke["points"], float), stroke["width"])] = stroke["class"]
        else:
            flat = label.reshape(-1)
            for start, length in np.array(stroke["runs"]).reshape(-1, 2).tolist():
                flat[start : start + length] = stroke["class"]


def runs_of(mask: np.ndarray) -> list[int]:
    """Returns the runs [start, length, ...] of a mask (H, W) bool, in row-major order."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask.reshape(-1), False].astype(np.int8)))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1).reshape(-1).tolist()


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**40


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12  # false for nan, too
