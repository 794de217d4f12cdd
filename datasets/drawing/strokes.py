"""Drawing a stroke, the strokes in a scribble label map, and thinner supervision made of them (the robustness sets of CC4S).

A stroke is a connected set of pixels of one class: strokes of a class that touch count as one.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from scipy.ndimage import find_objects, label
from skimage.graph import MCP_Geometric

from datasets.files import UNLABELLED

EIGHT_NEIGHBOURS = np.ones((3, 3), int)
SUBPIXEL = 4  # bits of a pixel's fraction in OpenCV's drawing
FARTHEST = 30_000  # pixels; OpenCV's drawing overflows beyond


def line(shape: tuple[int, int], points: np.ndarray, width: int) -> np.ndarray:
    """The pixels, (H, W) bool, of a line of `width` pixels through points (K, 2) float (x, y); one point makes a dot.

    What lies outside the picture is cut off.
    """
    fixed = (points.clip(-FARTHEST, FARTHEST) * (1 << SUBPIXEL)).round().astype(np.int32)
    # OpenCV's own thickness gives 5 pixels for 3: its joints are rounded up.
    margin = width // 2
    drawn: np.ndarray = np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.uint8)
    closed = len(points) == 1  # OpenCV draws nothing of an open line of one point
    cv2.polylines(drawn, [fixed + (margin << SUBPIXEL)], isClosed=closed, color=1, shift=SUBPIXEL)
    if width > 1:
        drawn = cv2.dilate(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return drawn[margin : margin + shape[0], margin : margin + shape[1]] > 0


def strokes(scribbles: np.ndarray) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Class id, bounding box and mask within the box (h, w) bool of every stroke of an (H, W) uint8 label map, by class
    and then from the top left."""
    for number in np.unique(scribbles[scribbles != UNLABELLED]).tolist():
        parts, _ = label(scribbles == number, EIGHT_NEIGHBOURS)
        for part, box in enumerate(find_objects(parts), start=1):
            yield number, box, parts[box] == part


def shrink(scribbles: np.ndarray, ratio: float) -> np.ndarray:
    """The middle part of every stroke: the pixels whose way along the stroke to its middle is at most `ratio` of the longest.

    scribbles: (H, W) uint8, 255 = unlabelled. ratio: 0 (a single pixel) to 1 (everything). What a smaller ratio keeps, a
    larger one keeps too. Returns (H, W) uint8.
    """
    shrunk = np.full_like(scribbles, UNLABELLED)
    for number, box, stroke in strokes(scribbles):
        distance = _distance_along(stroke, middle(stroke))
        shrunk[box][stroke & (distance <= ratio * distance[stroke].max())] = number
    return shrunk


def drop(scribbles: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Each stroke goes with `probability`, but one always stays.

    scribbles: (H, W) uint8, 255 = unlabelled. With an `rng` of the same seed, what a larger probability keeps, a smaller one
    keeps too. Returns (H, W) uint8.
    """
    all_strokes = list(strokes(scribbles))
    draws = rng.random(len(all_strokes))
    kept = np.full_like(scribbles, UNLABELLED)
    for (number, box, stroke), draw in zip(all_strokes, draws, strict=True):
        if draw >= probability or draw == draws.max():
            kept[box][stroke] = number
    return kept


def middle(stroke: np.ndarray) -> tuple[int, int]:
    """The pixel (row, column) half way along the longest way through a stroke, (h, w) bool."""
    first, last = ends(_costs(stroke), tuple(np.argwhere(stroke)[0]))
    ways = MCP_Geometric(_costs(stroke))
    ways.find_costs([first])
    way = ways.traceback(last)
    return way[len(way) // 2]


def ends(costs: np.ndarray, start: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ends of the longest way through a stroke or part that holds `start`: the pixel farthest from any is one, the pixel
    farthest from that the other. costs: as in `farthest`."""
    first = farthest(costs, start)
    return first, farthest(costs, first)


def farthest(costs: np.ndarray, start: tuple[int, int]) -> tuple[int, int]:
    """The pixel to which the cheapest way from `start` costs most, of those that can be reached. costs: (H, W) float, of
    each pixel on a way, infinite where there is none."""
    distance, _ = MCP_Geometric(costs).find_costs([start])
    row, column = np.unravel_index(np.where(np.isfinite(distance), distance, -1).argmax(), costs.shape)
    return int(row), int(column)


def _distance_along(stroke: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """How far each pixel is from `start` on ways that stay on the stroke, in pixels; infinite outside."""
    distance, _ = MCP_Geometric(_costs(stroke)).find_costs([start])
    return distance


def _costs(stroke: np.ndarray) -> np.ndarray:
    return np.where(stroke, 1.0, np.inf)
