"""The eigenspace loss and the walk alone, forward and backward, over the number of positions N: seconds and memory.

    python -m benchmarks.eigenspace [--device cuda] [--out eigenspace.json] [--plot docs/performance.png]

Each measurement is a process of its own, as in `benchmarks.steps`. The textbook is run as far as its matrices fit into
`limit` bytes.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from matplotlib import pyplot as plt
from tqdm import tqdm

from benchmarks import textbook
from benchmarks.measure import alone, conditions, repeat
from config import parse
from engine import distributed
from errors import run
from losses.eigenspace import eigenspace_consistency
from models.random_walk import walk

SIDES = (20, 30, 40, 59, 80, 120)  # N = 400 to 14,400; 59 x 59 is a crop of 465
WIDTH, VALUES = 64, 512  # of queries and keys; of the walk's values


@dataclass
class EigenspaceConfig:
    """What is measured."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """where"""
    batch: PositiveInt = 4
    """images"""
    repeats: PositiveInt = 3
    """timed runs of each, after one to warm up"""
    limit: PositiveFloat = 2e9
    """bytes of all N x N matrices of the textbook beyond which it is not run"""
    out: str | None = None
    """JSON file for the rows and conditions"""
    plot: str | None = None
    """picture of time and memory over N"""


def main() -> None:
    """The command line above."""
    config = parse(EigenspaceConfig, __doc__)
    rows = []
    turns = [(side, what, way) for side in SIDES for what in ("eigenspace", "walk") for way in ("textbook", "fast")]
    for side, what, way in tqdm(turns, unit="run", leave=False):
        matrices = 8 if what == "eigenspace" else 3
        if way == "textbook" and matrices * 4 * config.batch * side**4 > config.limit:
            continue
        measured = alone(measure, config, side, what, way)
        seconds = statistics.median(measured["seconds"])
        rows.append({"what": what, "way": way, "N": side**2, "seconds": seconds, "memory": measured["memory"]})
    under = conditions(distributed.pick_device(config.device)) | {"batch": config.batch, "d": WIDTH, "D": VALUES}
    print(", ".join(f"{name} {value}" for name, value in under.items()))
    print("| | N | textbook, s | fast, s | textbook, MB | fast, MB |\n|---|---|---|---|---|---|")
    for what in ("eigenspace", "walk"):
        for side in SIDES:
            found = {row["way"]: row for row in rows if row["what"] == what and row["N"] == side**2}
            seconds = [f"{found[way]['seconds']:.3f}" if way in found else "-" for way in ("textbook", "fast")]
            memory = [f"{found[way]['memory'] / 1e6:.0f}" if way in found else "-" for way in ("textbook", "fast")]
            print(f"| {what} | {side**2} | {' | '.join(seconds + memory)} |")
    if config.out:
        Path(config.out).write_text(json.dumps({"conditions": under, "rows": rows}, indent=1) + "\n")
    if config.plot:
        draw(rows, config.plot)


def measure(config: EigenspaceConfig, side: int, what: str, way: str) -> dict:
    """Seconds and memory of forward and backward passes of one loss in one way."""
    device = distributed.pick_device(config.device)
    generator = torch.Generator().manual_seed(0)

    def features(width: int) -> torch.Tensor:
        made = torch.randn(config.batch, width, side, side, generator=generator) / WIDTH**0.25
        return made.to(device, memory_format=torch.channels_last)

    query, key, view_query, view_key = (features(WIDTH) for _ in range(4))
    value = features(VALUES)
    learned = (query.requires_grad_(), key.requires_grad_(), *([value.requires_grad_()] if what == "walk" else []))

    def flat(image_map: torch.Tensor) -> torch.Tensor:
        return image_map.flatten(2).mT

    def result() -> torch.Tensor:
        if what == "walk" and way == "fast":
            return walk(query, key, value).sum()
        if what == "walk":
            return ((flat(query) @ flat(key).mT).softmax(dim=-1) @ flat(value)).sum()
        if way == "fast":
            mirrored = (flat(view.flip(-1)) for view in (view_query, view_key))
            return eigenspace_consistency(flat(query), flat(key), *mirrored)
        mirror = textbook.mirror_matrix(side, side, device).float()
        view_energy = mirror @ (flat(view_query) @ flat(view_key).mT) @ mirror
        return textbook.eigenspace_consistency(flat(query) @ flat(key).mT, view_energy)

    return repeat(lambda: torch.autograd.grad(result(), learned), config.repeats, 1, device)


def draw(rows: list[dict], path: str) -> None:
    """Time and memory over N, both axes logarithmic."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = {"eigenspace": "tab:blue", "walk": "tab:orange"}
    for panel, quantity, unit, name in ((panels[0], "seconds", 1, "seconds"), (panels[1], "memory", 1e6, "MB")):
        for what, colour in colours.items():
            for way, style in (("fast", "-o"), ("textbook", "--s")):
                line = [(row["N"], row[quantity] / unit) for row in rows if row["what"] == what and row["way"] == way]
                panel.plot(*zip(*line, strict=True), style, color=colour, label=f"{what}, {way}", markersize=4)
        panel.set(xscale="log", yscale="log", xlabel="positions N", ylabel=name)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
