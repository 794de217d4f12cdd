"""Measures the preparation of superpixels: seconds per image on one core, for each part.

    python -m benchmarks.superpixels DATA_ROOT/JPEGImages

The parts are those of `tools.superpixels`: SLIC; the graph (adjacent superpixels and the similarity of their histograms); and
everything, which includes reading, boundaries and writing. The results are medians over the photos.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from jsonargparse.typing import PositiveInt

from benchmarks.measure import as_json
from command_line import parse
from datasets.files import read_image
from datasets.folder_layout import images_below
from datasets.segmentation import Superpixels
from errors import UserError, run
from tools.superpixels import SuperpixelConfig, prepare, segment, similarities


@dataclass
class BenchmarkConfig:
    """The photos."""

    photos: str
    """a folder of images"""
    count: PositiveInt = 24
    """number of images"""


def main() -> None:
    """Runs the command line above and prints a table and JSON. Raises UserError for a folder without images."""
    config = parse(BenchmarkConfig, __doc__, positional=True)
    files = list(images_below(Path(config.photos)).values())[: config.count]
    if not files:
        raise UserError(f"{config.photos}: no images in it")
    cv2.setNumThreads(1)  # the tool does the same in each process
    settings = SuperpixelConfig(root="")
    seconds: dict[str, list[float]] = {"SLIC": [], "graph": [], "everything": []}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            image = read_image(file)
            start = time.perf_counter()
            superpixel = segment(image, settings.segments, settings.compactness)
            middle = time.perf_counter()
            similarities(image, superpixel)
            end = time.perf_counter()
            prepare(Superpixels(Path(folder)), settings, file.stem, file)
            everything = time.perf_counter() - end
            for times, passed in zip(seconds.values(), (middle - start, end - middle, everything), strict=True):
                times.append(passed)
    medians = {part: statistics.median(times) for part, times in seconds.items()}
    print("| part | seconds |\n|---|---|")
    for part, median in medians.items():
        print(f"| {part} | {median:.3f} |")
    print(f"{1 / medians['everything']:.1f} images a second of one core")
    rows = [{"part": part, "seconds": median} for part, median in medians.items()]
    print(as_json(rows, torch.device("cpu"), images=len(files)))


if __name__ == "__main__":
    run(main)
