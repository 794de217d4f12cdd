"""Measures the parts that compare all pairs of N positions: the eigenspace loss, the walk and the local aggregation. Each part
runs alone, forward and backward, for several N. The results are seconds and memory.

    python -m benchmarks.pairs [--device cuda] [--out pairs.json] [--plot docs/performance.png]

Each measurement has its own process, as in `benchmarks.steps`. The textbook version runs while its N x N matrices fit into
`limit` bytes. --out is written after every measurement.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from matplotlib import pyplot as plt
from tqdm import tqdm

from benchmarks import textbook
from benchmarks.measure import alone, as_json, repeat
from command_line import parse
from config import Device
from engine import distributed
from errors import run
from losses.eigenspace import eigenspace_consistency
from models.local_aggregation import local_aggregation
from ops.walk import walk

WIDTH, VALUES = 64, 512  # channels of queries and keys; channels of the walk's values
PATCH, CLASSES, SIGMA = 256, 21, 6.0  # settings of the local aggregation
MATRICES = {"eigenspace": 8, "walk": 3, "aggregation": 6}  # approximate number of N x N matrices per image (textbook)


@dataclass
class PairsConfig:
    """The device, the sizes and the outputs."""

    device: Device = "cpu"
    """device"""
    sides: tuple[PositiveInt, ...] = (20, 30, 40, 59, 80, 96, 120)
    """sides of the map: N = 400 to 14,400; 59 is a crop of 465 at stride 8 (CC4S), 96 is a crop of 384 at stride 4 (BLPSeg)"""
    batch: PositiveInt = 4
    """images per batch"""
    repeats: PositiveInt = 3
    """timed runs of each part, after one warm-up run"""
    limit: PositiveFloat = 2e9
    """largest total size of the N x N matrices in the textbook version, in bytes"""
    out: str | None = None
    """JSON file for the rows and the conditions"""
    plot: str | None = None
    """image file for the plot of time and memory over N"""


def main() -> None:
    """Runs the command line above."""
    config = parse(PairsConfig, __doc__)
    rows, device = [], distributed.pick_device(config.device)
    settings = {name: getattr(config, name) for name in ("batch", "repeats", "limit")}
    turns = [(side, what, way) for side in config.sides for what in MATRICES for way in ("textbook", "fast")]
    for side, what, way in tqdm(turns, unit="run", leave=False):
        if way == "textbook" and MATRICES[what] * 4 * config.batch * side**4 > config.limit:
            continue
        try:
            measured = alone(measure, config, side, what, way)
        except torch.OutOfMemoryError:
            tqdm.write(f"{what}, {way}, N {side**2}: does not fit into the GPU's memory")
            continue
        seconds = statistics.median(measured["seconds"])
        rows.append({"what": what, "way": way, "N": side**2, "seconds": seconds, "memory": measured["memory"]})
        tqdm.write(f"{what}, {way}, N {side**2}: {seconds:.3f} s, {measured['memory'] / 1e6:.0f} MB")
        if config.out:
            Path(config.out).write_text(as_json(rows, device, **settings) + "\n")
    print("| | N | textbook, s | fast, s | textbook, MB | fast, MB |\n|---|---|---|---|---|---|")
    for what in MATRICES:
        for side in config.sides:
            found = {row["way"]: row for row in rows if row["what"] == what and row["N"] == side**2}
            seconds = [f"{found[way]['seconds']:.3f}" if way in found else "-" for way in ("textbook", "fast")]
            memory = [f"{found[way]['memory'] / 1e6:.0f}" if way in found else "-" for way in ("textbook", "fast")]
            print(f"| {what} | {side**2} | {' | '.join(seconds + memory)} |")
    if not config.out:
        print(as_json(rows, device, **settings))
    if config.plot:
        draw(rows, config.plot)


def measure(config: PairsConfig, side: int, what: str, way: str) -> dict:
    """Seconds and memory of the forward and backward passes of one part in one version."""
    device = distributed.pick_device(config.device)
    generator = torch.Generator().manual_seed(0)

    def features(width: int, scale: float) -> torch.Tensor:
        made = torch.randn(config.batch, width, side, side, generator=generator) * scale
        return made.to(device, memory_format=torch.channels_last).requires_grad_()

    learned: tuple[torch.Tensor, ...]
    if what == "aggregation":
        learned = features(CLASSES, 1), features(PATCH, PATCH**-0.25)
    else:
        learned = features(WIDTH, WIDTH**-0.25), features(WIDTH, WIDTH**-0.25)
    if what == "walk":
        learned += (features(VALUES, 1),)
    view = [features(WIDTH, WIDTH**-0.25).detach() for _ in range(2)] if what == "eigenspace" else []
    forward = FORWARD[what, way]
    return repeat(lambda: torch.autograd.grad(forward(*learned, *view), learned), config.repeats, 1, device)


def flat(image_map: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) -> (B, N, D)."""
    return image_map.flatten(2).mT


def textbook_eigenspace(query: torch.Tensor, key: torch.Tensor, *view: torch.Tensor) -> torch.Tensor:
    mirror = textbook.mirror_matrix(query.shape[-2], query.shape[-1], query.device).float()
    view_query, view_key = map(flat, view)
    return textbook.eigenspace_consistency(flat(query) @ flat(key).mT, mirror @ (view_query @ view_key.mT) @ mirror)


FORWARD: dict[tuple[str, str], Callable[..., torch.Tensor]] = {
    ("eigenspace", "textbook"): textbook_eigenspace,
    ("eigenspace", "fast"): lambda query, key, view_query, view_key: eigenspace_consistency(
        flat(query), flat(key), flat(view_query.flip(-1)), flat(view_key.flip(-1))
    ),
    ("walk", "textbook"): lambda query, key, value: ((flat(query) @ flat(key).mT).softmax(dim=-1) @ flat(value)).sum(),
    ("walk", "fast"): lambda query, key, value: walk(query, key, value).sum(),
    ("aggregation", "textbook"): lambda logits, features: textbook.local_aggregation(logits, features, SIGMA).sum(),
    ("aggregation", "fast"): lambda logits, features: local_aggregation(logits, features, SIGMA).sum(),
}


def draw(rows: list[dict], path: str) -> None:
    """Plots time and memory over N on logarithmic axes."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = {"eigenspace": "tab:blue", "walk": "tab:orange", "aggregation": "tab:green"}
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
