"""Drawing a stroke, finding the strokes in a label map, and thinning them out (the robustness sets of CC4S).

A stroke is a connected set of pixels of one class. Strokes of one class that touch count as one stroke.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from scipy.ndimage import find_objects, label
from skimage.graph import MCP_Geometric

from datasets.files import UNLABELLED

EIGHT_NEIGHBOURS = np.ones((3, 3), int)
SUBPIXEL = 4  # OpenCV draws with coordinates of this many fractional bits
FARTHEST = 30_000  # largest coordinate in pixels; beyond it, OpenCV's drawing overflows


def line(shape: tuple[int, int], points: np.ndarray, width: int) -> np.ndarray:
    """Draws a line of `width` pixels through points (K, 2) float (x, y): (H, W) bool. One point makes a dot.

    The line is cut off at the image border.
    """
    fixed = (points.clip(-FARTHEST, FARTHEST) * (1 << SUBPIXEL)).round().astype(np.int32)
    # The line is drawn thin and then dilated. OpenCV rounds joints up, so its own thickness 3 gives 5 pixels.
    margin = width // 2
    drawn: np.ndarray = np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.uint8)
    closed = len(points) == 1  # OpenCV does not draw an open line of one point
    cv2.polylines(drawn, [fixed + (margin << SUBPIXEL)], isClosed=closed, color=1, shift=SUBPIXEL)
    if width > 1:
        drawn = cv2.dilate(drawn, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return drawn[margin : margin + shape[0], margin : margin + shape[1]] > 0


def strokes(scribbles: np.ndarray) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Yields class id, bounding box and mask in the box (h, w) bool of every stroke in an (H, W) uint8 label map. Strokes are
    sorted by class, then from the top left."""
    for number in np.unique(scribbles[scribbles != UNLABELLED]).tolist():
        parts, _ = label(scribbles == number, EIGHT_NEIGHBOURS)
        for part, box in enumerate(find_objects(parts), start=1):
            yield number, box, parts[box] == part


def shrink(scribbles: np.ndarray, ratio: float) -> np.ndarray:
    """Keeps the middle part of every stroke: pixels within `ratio` of the largest distance to the middle, along the stroke.

    scribbles: (H, W) uint8, 255 = unlabelled. ratio: 0 (a single pixel) to 1 (everything). A smaller ratio keeps a subset of
    the pixels of a larger ratio. Returns (H, W) uint8.
    """
    shrunk = np.full_like(scribbles, UNLABELLED)
    for number, box, stroke in strokes(scribbles):
        distance = _distance_along(stroke, middle(stroke))
        shrunk[box][stroke & (distance <= ratio * distance[stroke].max())] = number
    return shrunk


def drop(scribbles: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Drops each stroke with `probability`, but always keeps at least one stroke. Returns (H, W) uint8.

    scribbles: (H, W) uint8, 255 = unlabelled. With an `rng` of the same seed, a larger probability keeps a subset of the
    strokes of a smaller probability.
    """
    all_strokes = list(strokes(scribbles))
    draws = rng.random(len(all_strokes))
    kept = np.full_like(scribbles, UNLABELLED)
    for (number, box, stroke), draw in zip(all_strokes, draws, strict=True):
        if draw >= probability or draw == draws.max():
            kept[box][stroke] = number
    return kept


def middle(stroke: np.ndarray) -> tuple[int, int]:
    """Returns the pixel (row, column) half way along the longest path through a stroke (h, w) bool."""
    first, last = ends(_costs(stroke), tuple(np.argwhere(stroke)[0]))
    ways = MCP_Geometric(_costs(stroke))
    ways.find_costs([first])
    way = ways.traceback(last)
    return way[len(way) // 2]


def ends(costs: np.ndarray, start: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the ends of the longest path through the stroke or part around `start`. The first end is farthest from `start`.
    The second end is farthest from the first end. costs: see `farthest`."""
    first = farthest(costs, start)
    return first, farthest(costs, first)


def farthest(costs: np.ndarray, start: tuple[int, int]) -> tuple[int, int]:
    """Returns the reachable pixel (row, column) whose cheapest path from `start` costs most. costs: (H, W) float, the cost of
    each pixel on a path; infinite for pixels that no path may use."""
    distance, _ = MCP_Geometric(costs).find_costs([start])
    row, column = np.unravel_index(np.where(np.isfinite(distance), distance, -1).argmax(), costs.shape)
    return int(row), int(column)


def _distance_along(stroke: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Returns the distance of each pixel from `start` along the stroke, in pixels; infinite outside the stroke."""
    distance, _ = MCP_Geometric(_costs(stroke)).find_costs([start])
    return distance


def _costs(stroke: np.ndarray) -> np.ndarray:
    return np.where(stroke, 1.0, np.inf)
