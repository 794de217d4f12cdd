"""Superpixels and the graph of the colour constraint (CC4S) of one image, computed or read from the released code's files."""

from pathlib import Path

import cv2
import numpy as np
from skimage.segmentation import slic

from datasets.files import NO_SUPERPIXEL, read_matlab73
from errors import UserError

COLOUR_BINS = 25  # per channel, 3 channels
GRADIENT_BINS = 10  # per direction, 2 directions


def segment(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """Computes SLIC superpixels of (H, W, 3) uint8 RGB: (H, W) uint16 ids from 0 without gaps. UserError if too many."""
    superpixel = slic(image, n_segments=segments, compactness=compactness, start_label=0, channel_axis=-1)
    if superpixel.max() >= NO_SUPERPIXEL:
        raise UserError(f"--segments {segments}: more superpixels than a 16-bit map can hold; choose a smaller number")
    return superpixel.astype(np.uint16)


def read_released(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads superpixels (H, W) uint16, edges (M, 2) int32, weights (M,) float32: FOLDER/spiex/NAME.mat and Laplace/NAME.mat.

    The released code numbers superpixels from 1 (`var1`). It scales each column of the weights (`W`, N x N) by the column's
    maximum, so W is not symmetric. An edge gets the mean of its two weights. Raises UserError for a missing or damaged file.
    """
    maps, graphs = folder / "spiex" / f"{name}.mat", folder / "Laplace" / f"{name}.mat"
    superpixel = read_matlab73(maps, "var1").astype(np.int64) - 1
    weights = read_matlab73(graphs, "W").astype(np.float64)
    count = int(superpixel.max()) + 1
    if superpixel.min() < 0 or count >= NO_SUPERPIXEL:
        raise UserError(f"{maps}: superpixel numbers must start at 1 and fit 16 bits, not {superpixel.min() + 1} to {count}")
    if weights.shape != (count, count) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f"{graphs}: {count} x {count} weights, all 0 or more, are expected")
    weights = (weights + weights.T) / 2
    edges = np.argwhere(np.triu(weights, 1) > 0).astype(np.int32)
    return superpixel.astype(np.uint16), edges, weights[tuple(edges.T)].astype(np.float32)


def similarities(image: np.ndarray, superpixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the graph of the colour constraint (CC4S): edges (M, 2) int32, adjacent superpixels a < b; weights (M,) float32.

    d = ||dh_colour|| / 25 + ||dh_gradient|| / 100, where dh is the difference of the histograms of a and b. The colour
    histogram has 25 bins per RGB channel. The gradient histogram has 10 bins per direction (horizontal, vertical) of the grey
    gradient, from the image's smallest to its largest gradient. Counts are divided by the superpixel's area. w = exp(-5 d).
    Then 0.8 of the smallest w is subtracted, and the largest w is scaled to 0.8.
    """
    edges = adjacent(superpixel)
    if not len(edges):
        return edges, np.zeros(0, np.float32)
    ids = superpixel.reshape(-1).astype(np.int64)
    area = np.bincount(ids)[:, None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    slopes = np.stack([_slope(grey, axis).reshape(-1) for axis in (1, 0)], axis=1)
    colour = _bins(image.reshape(-1, 3).astype(np.float32), 0, 255, COLOUR_BINS)
    gradient = _bins(slopes, slopes.min(), slopes.max(), GRADIENT_BINS)
    first, second = edges.T
    distance = np.zeros(len(edges))
    for values, bins, scale in ((colour, COLOUR_BINS, 25), (gradient, GRADIENT_BINS, 100)):
        histogram = _histograms(ids, values, bins, len(area)) / area
        distance += np.linalg.norm(histogram[first] - histogram[second], axis=1) / scale
    weights = np.exp(-5 * distance)
    weights -= 0.8 * weights.min()
    return edges, (0.8 * weights / weights.max()).astype(np.float32)


def _bins(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Returns the bin of each value, int64, for `bins` equal bins from `low` to `high`. The last bin includes `high`."""
    if high == low:
        return np.zeros(values.shape, np.int64)
    return np.minimum((values - low) * bins / (high - low), bins - 1).astype(np.int64)


def _slope(grey: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(grey, axis=axis) if grey.shape[axis] > 1 else np.zeros_like(grey)


def adjacent(superpixel: np.ndarray) -> np.ndarray:
    """Returns the pairs a < b of ids that touch left-right or up-down, each pair once: (M, 2) int32."""
    pairs = np.concatenate(
        [
            np.stack([superpixel[:, :-1].reshape(-1), superpixel[:, 1:].reshape(-1)], axis=1),
            np.stack([superpixel[:-1].reshape(-1), superpixel[1:].reshape(-1)], axis=1),
        ]
    ).astype(np.int64)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    count = int(superpixel.max()) + 1
    codes = np.unique(pairs[:, 0] * count + pairs[:, 1])
    return np.stack([codes // count, codes % count], axis=1).astype(np.int32)


def _histograms(ids: np.ndarray, values: np.ndarray, bins: int, count: int) -> np.ndarray:
    """values (P, K) int64 in [0, bins), superpixel ids (P,) of the pixels -> counts (count, K * bins)."""
    channels = values.shape[1]
    codes = (ids[:, None] * channels + np.arange(channels)) * bins + values
    return np.bincount(codes.reshape(-1), minlength=count * channels * bins).reshape(count, channels * bins)
