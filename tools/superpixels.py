"""Superpixels for the soft entropy and the colour constraint, once per training image.

    python -m tools.superpixels DATA_ROOT [--split train] [--out superpixels] [--segments 800]
    python -m tools.superpixels DATA_ROOT --released FOLDER     # FOLDER/spiex/NAME.mat and FOLDER/Laplace/NAME.mat of CC4S

Writes, per image, OUT/map/NAME.png (16-bit ids), OUT/boundary/NAME.png (255 at boundaries) and OUT/edges/NAME.npz
(`edges` (M, 2) int32 pairs of adjacent superpixels, `weights` (M,) float32 in [0, 0.8]). Images that have all three are
skipped.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt
from PIL import Image
from skimage.segmentation import find_boundaries, slic

from command_line import parse
from datasets import open_index
from datasets.demo import draw_if_missing
from datasets.files import NO_SUPERPIXEL, read_image, read_matlab73, whole
from datasets.segmentation import Superpixels
from engine.provenance import claim, read_record
from errors import UserError, run
from tools.batch import BatchConfig, process

COLOUR_BINS = 25  # of each of 3 channels
GRADIENT_BINS = 10  # of each of 2 directions


@dataclass
class SuperpixelConfig(BatchConfig):
    """What the colour constraint and the soft entropy need of each training image."""

    root: str
    """the data set"""
    out: str = "superpixels"
    """folder to write: a folder of root, or a path with a slash"""
    split: str = "train"
    """list of images"""
    segments: PositiveInt = 800
    """superpixels an image, about"""
    compactness: PositiveFloat = 10.0
    """SLIC's balance of nearness (higher, squarer) against colour"""
    released: str | None = None
    """folder with the spiex/ and Laplace/ that CC4S's scribblesup.m wrote: convert these instead of making superpixels"""


def main() -> int:
    """The command line above; returns the exit code, 1 where an image failed. Raises UserError for missing data."""
    config = parse(SuperpixelConfig, __doc__, positional=True)
    draw_if_missing(config.root)
    faults: list[str] = []
    index = open_index(config.root, config.split, faults=faults)
    out = Path(config.out)
    superpixels = Superpixels(out if len(out.parts) > 1 else Path(config.root) / out)
    record = superpixels.folder / "superpixels.json"
    if config.released is None:  # a stage script goes on with a folder that was converted
        config = replace(config, released=(read_record(record) or {}).get("released"))
    conditions = {"segments": config.segments, "compactness": config.compactness}
    if config.released is not None:
        conditions = {"released": config.released}
    claim(record, conditions, {"gradient_bins": "the image's own range"})
    if "gradient_bins" not in read_record(record):
        print(f"note: the edges in {superpixels.folder} are of an earlier version, whose gradient bins span -255 to 255")
    images = dict(zip(index.names, index.images, strict=True))
    work = partial(prepare, superpixels, config)
    return process(work, images, superpixels.present, config, f"superpixels in {superpixels.folder}", faults)[1]


def prepare(superpixels: Superpixels, config: SuperpixelConfig, name: str, path: Path) -> None:
    """Writes the three files of image `name`, each whole or not at all."""
    image = read_image(path)
    if config.released is None:
        superpixel = segment(image, config.segments, config.compactness)
        edges, weights = similarities(image, superpixel)
    else:
        superpixel, edges, weights = read_released(Path(config.released), name)
        if superpixel.shape != image.shape[:2]:
            raise UserError(f"{config.released}/spiex/{name}.mat is of another size than {path}")
    boundary = find_boundaries(superpixel, mode="thick")
    with whole(superpixels.map(name)) as temporary:
        Image.fromarray(superpixel).save(temporary, "PNG")
    with whole(superpixels.boundary(name)) as temporary:
        Image.fromarray(np.uint8(255) * boundary).save(temporary, "PNG")
    with whole(superpixels.edges(name)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, edges=edges, weights=weights)


def segment(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """SLIC superpixels of (H, W, 3) uint8 RGB: (H, W) uint16 ids from 0, without gaps."""
    superpixel = slic(image, n_segments=segments, compactness=compactness, start_label=0, channel_axis=-1)
    if superpixel.max() >= NO_SUPERPIXEL:
        raise UserError(f"--segments {segments}: more superpixels than a 16-bit map holds")
    return superpixel.astype(np.uint16)


def read_released(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Superpixels (H, W) uint16, edges (M, 2) int32 and weights (M,) float32, of FOLDER/spiex/NAME.mat and Laplace/NAME.mat.

    The released code numbers superpixels from 1 (`var1`) and divides each column of the weights (`W`, N x N) by its largest, so
    that W is not symmetric: an edge gets the mean of its two. Raises UserError for a file that is missing or damaged.
    """
    maps, graphs = folder / "spiex" / f"{name}.mat", folder / "Laplace" / f"{name}.mat"
    superpixel = read_matlab73(maps, "var1").astype(np.int64) - 1
    weights = read_matlab73(graphs, "W").astype(np.float64)
    count = int(superpixel.max()) + 1
    if superpixel.min() < 0 or count >= NO_SUPERPIXEL:
        raise UserError(f"{maps}: superpixels are numbered from 1, these from {superpixel.min() + 1} to {count}")
    if weights.shape != (count, count) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f"{graphs}: {count} x {count} weights of 0 or more are expected")
    weights = (weights + weights.T) / 2
    edges = np.argwhere(np.triu(weights, 1) > 0).astype(np.int32)
    return superpixel.astype(np.uint16), edges, weights[tuple(edges.T)].astype(np.float32)


def similarities(image: np.ndarray, superpixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour constraint's graph (CC4S): adjacent superpixels a < b as edges (M, 2) int32, and weights (M,) float32.

    d = ||dh_colour|| / 25 + ||dh_gradient|| / 100 between their histograms: 25 bins of each channel of RGB, and 10 bins of the
    horizontal and of the vertical grey gradient, from the smallest to the largest gradient of the image in either direction.
    Counts are divided by the superpixel's area. w = exp(-5 d), 0.8 of the smallest w subtracted, scaled so that the largest is
    0.8.
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
    """Which of `bins` equal bins from `low` to `high` each value is in, int64; the last holds `high`, too."""
    if high == low:
        return np.zeros(values.shape, np.int64)
    return np.minimum((values - low) * bins / (high - low), bins - 1).astype(np.int64)


def _slope(grey: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(grey, axis=axis) if grey.shape[axis] > 1 else np.zeros_like(grey)


def adjacent(superpixel: np.ndarray) -> np.ndarray:
    """Pairs a < b of ids that touch left-right or up-down, each once: (M, 2) int32."""
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
    """values (P, K) int64 in [0, bins), superpixel of each pixel (P,) -> counts (count, K * bins)."""
    channels = values.shape[1]
    codes = (ids[:, None] * channels + np.arange(channels)) * bins + values
    return np.bincount(codes.reshape(-1), minlength=count * channels * bins).reshape(count, channels * bins)


if __name__ == "__main__":
    run(main)
