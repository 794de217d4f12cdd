"""Compares the dense CRF in torch with pydensecrf: seconds per image and the difference of the results.

    python -m benchmarks.crf PHOTOS [--device cuda]

A run is ten mean-field steps with CC4S's parameters, on photos resized to 500x375 and probabilities of smooth random regions.
Runs alternate between the libraries; medians count. pydensecrf uses one CPU core. Without pydensecrf, torch is measured alone.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import cv2
import torch
import torch.nn.functional as F

from benchmarks.measure import as_json
from command_line import parse
from config import CrfConfig
from datasets.files import read_image
from datasets.folder_layout import images_below
from engine import distributed
from engine.crf import refine
from errors import UserError, run

HEIGHT, WIDTH, PHOTOS, ROUNDS = 375, 500, 3, 3


@dataclass
class CrfBenchmarkConfig:
    """The photos and the device."""

    photos: str
    """a folder of images, such as a data set's JPEGImages"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device of the CRF in torch"""


def main() -> None:
    """Runs the command line above and prints a table and JSON. Raises UserError for a folder without images."""
    config = parse(CrfBenchmarkConfig, __doc__, positional=True)
    device = distributed.pick_device(config.device)
    libraries = ["torch"] + ["pydensecrf"] * (find_spec("pydensecrf") is not None)
    files = list(images_below(Path(config.photos)).values())[:PHOTOS]
    if not files:
        raise UserError(f"{config.photos}: no images in it")
    photos = [cv2.resize(read_image(file), (WIDTH, HEIGHT)) for file in files]
    rows = [measure(classes, photos, device, libraries) for classes in (2, 21, 60)]
    print("| classes | torch, s | pydensecrf, s | torch / pydensecrf | largest difference | same class |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        compared = "- | - | - | -"
        if "pydensecrf" in row:
            compared = (
                f"{row['pydensecrf']:.3f} | {row['torch'] / row['pydensecrf']:.2f} "
                f"| {row['difference']:.1e} | {100 * row['same']:.3f}%"
            )
        print(f"| {row['classes']} | {row['torch']:.3f} | {compared} |")
    print(as_json(rows, device, photos=len(photos), size=[HEIGHT, WIDTH]))


def measure(classes: int, photos: list, device: torch.device, libraries: Sequence[str]) -> dict:
    """Median seconds of each library. With two libraries, also the difference between their marginals."""
    seconds: dict[str, list[float]] = {library: [] for library in libraries}
    difference, same = 0.0, []
    for number, photo in enumerate(photos):
        generator = torch.Generator().manual_seed(number)
        coarse = 3 * torch.randn(1, classes, HEIGHT // 24, WIDTH // 24, generator=generator)
        probabilities = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")[0].softmax(dim=0).to(device)
        for _ in range(ROUNDS):
            marginals = {}
            for library, times in seconds.items():
                start = time.perf_counter()
                marginals[library] = refine(probabilities, photo, library, CrfConfig())
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        ours, theirs = (marginals[library] for library in (libraries[0], libraries[-1]))
        difference = max(difference, (ours - theirs).abs().max().item())
        same.append((ours.argmax(dim=0) == theirs.argmax(dim=0)).double().mean().item())
    medians = {library: statistics.median(times[1:]) for library, times in seconds.items()}  # the first run is a warm-up
    found = {"classes": classes, **medians}
    return found if len(libraries) == 1 else found | {"difference": difference, "same": statistics.mean(same)}


if __name__ == "__main__":
    run(main)
