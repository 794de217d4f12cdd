"""Scribbles drawn from dense masks, as a person would draw them.

Every connected part of every class gets a stroke along its middle, from near one end to near the other end. The stroke sways
like a hand-drawn stroke. Large parts get more strokes in their free areas. A stroke never leaves its part.
"""

import os
import zlib

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, label, map_coordinates
from skimage.graph import MCP_Geometric

from datasets.drawing.strokes import ends, line
from datasets.files import UNLABELLED

FURTHER = 0.15  # a part gets one more stroke each time that it covers this share of the image
CORE = 0.2  # least distance of the middle line from the part's edge, as a share of the part's greatest depth


def generator(name: str, seed: int) -> np.random.Generator:
    """Returns the random generator of an image. The same name and seed give the same numbers."""
    return np.random.default_rng((seed, zlib.crc32(os.fsencode(name))))


def draw_scribbles(
    mask: np.ndarray, rng: np.random.Generator, width: int = 3, smallest: float = 0.001, most: int = 3
) -> np.ndarray:
    """Draws scribbles into a dense mask: (H, W) uint8 class ids, 255 = unlabelled. Every labelled pixel has the id of the mask.

    mask: (H, W) uint8, 255 = void. width: of a stroke, pixels. smallest: parts under this share of the image get no stroke.
    most: most strokes in a part. Only parts that cover a large share of the image (`FURTHER`) get more than one stroke.
    """
    scribbles = np.full(mask.shape, UNLABELLED, np.uint8)
    for number in np.unique(mask[mask != UNLABELLED]).tolist():
        count, parts, boxes, _ = cv2.connectedComponentsWithStats((mask == number).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            left, top, columns, rows, area = boxes[part].tolist()
            if area >= smallest * mask.size:
                box = slice(top, top + rows), slice(left, left + columns)
                strokes = min(most, 1 + int(area / (FURTHER * mask.size)))
                scribbles[box][_draw_in(parts[box] == part, strokes, width, rng)] = number
    return scribbles


def _draw_in(part: np.ndarray, strokes: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the pixels (h, w) bool of at most `strokes` strokes in a connected part (h, w) bool."""
    drawn, free, first_room = np.zeros_like(part), part, None
    for _ in range(strokes):
        depth = _depth(free)
        room = depth.max()
        first_room = first_room or room
        if room < 0.4 * first_room:  # only margins are free, and nobody draws there
            break
        pixels = line(part.shape, stroke(depth, rng)[:, ::-1], width)
        drawn |= pixels
        # The next stroke goes into the largest free area that is well away from this stroke.
        away = cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        parts, _ = label(free & (away > 0.6 * room))
        sizes = np.bincount(parts.reshape(-1))[1:]
        if not sizes.size:
            break
        free = parts == 1 + sizes.argmax()
    return drawn & part


def _depth(part: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the outside of the part, in pixels. Everything beyond the image border is outside, too."""
    return cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]


def stroke(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a line along the middle of a part: points (K, 2) float64 (row, column), about a pixel apart.

    depth: (h, w) float32, distance of each pixel to the outside of the part, in pixels; 0 outside.
    """
    way = _middle_way(depth)
    # People stop short of the ends.
    first = int(rng.uniform(0, 0.12) * len(way))
    middle = way[first : max(int((1 - rng.uniform(0, 0.12)) * len(way)), first + 1)]
    if len(middle) < 3:
        return middle
    way = gaussian_filter1d(_even(middle), max(2.0, 0.3 * depth.max()), axis=0, mode="nearest")
    # The hand sways slowly, by at most half of the distance to the outside, so that the line stays inside.
    room = map_coordinates(depth, way.T, order=1)
    along = gaussian_filter1d(way, 3, axis=0, mode="nearest")
    tangent = np.gradient(along, axis=0)
    normal = tangent[:, ::-1] * (1, -1) / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    sway = sum(weight * _noise(len(way), period, rng) for period, weight in ((0.9 * len(way), 1.0), (50.0, 0.35), (12.0, 0.06)))
    swayed = way + normal * np.clip(0.3 * sway, -0.5, 0.5)[:, None] * np.minimum(room, 40)[:, None]
    swayed = gaussian_filter1d(swayed, 1.5, axis=0, mode="nearest")
    inside = map_coordinates(depth, swayed.T, order=1, mode="constant") > 0.5
    # Smoothing may cut a corner of a narrow part. Then the line follows the middle without smoothing.
    return swayed if inside.all() else _even(middle)


def _middle_way(depth: np.ndarray) -> np.ndarray:
    """Returns points (K, 2) float64 along the middle of a part, from one end to the other end."""
    step = max(1, int(depth.max() * CORE / 2))  # wide parts need no fine grid
    # The offset puts the deepest pixel on the grid.
    deepest = divmod(int(depth.argmax()), depth.shape[1])
    offset = deepest[0] % step, deepest[1] % step
    coarse = depth[offset[0] :: step, offset[1] :: step]
    start = (deepest[0] - offset[0]) // step, (deepest[1] - offset[1]) // step
    core = coarse >= CORE * depth.max()
    first, last = ends(np.where(core, 1.0, np.inf), start)
    towards_middle = np.where(core, (depth.max() / np.maximum(coarse, 0.5)) ** 2, np.inf)
    ways = MCP_Geometric(towards_middle)
    ways.find_costs([first], [last])
    return np.array(ways.traceback(last), float) * step + offset


def _even(way: np.ndarray) -> np.ndarray:
    """Resamples the line through the points (K, 2) to points about a pixel apart."""
    travelled = np.r_[0, np.linalg.norm(np.diff(way, axis=0), axis=1).cumsum()]
    places = np.linspace(0, travelled[-1], max(2, int(travelled[-1]) + 1))
    return np.stack([np.interp(places, travelled, column) for column in way.T], axis=1)


def _noise(count: int, period: float, rng: np.random.Generator) -> np.ndarray:
    """Returns smooth noise of about unit variance at `count` points. Its waves are about `period` points long."""
    margin = int(2 * period) + 1
    noise = gaussian_filter1d(rng.standard_normal(count + 2 * margin), period / 4)[margin:-margin]
    return noise * np.sqrt(2 * np.sqrt(np.pi) * period / 4)
