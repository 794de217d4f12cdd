"""Seconds from the command to the first step done, by stage, and what of them is importing.

    python -m benchmarks.startup [--runs 3] [--stages "[baseline, ur]"]

Each run is `train.py` on the demo data (drawn before) with a ResNet-18, until the first line stands in metrics.jsonl.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial

from jsonargparse.typing import PositiveInt

from benchmarks.measure import ROOT, as_json, step_times
from command_line import parse
from datasets.drawing.demo import draw_if_missing
from engine import distributed
from errors import run


@dataclass
class StartupConfig:
    """What is started."""

    runs: PositiveInt = 3
    """times each"""
    stages: tuple[str, ...] = ("baseline", "ur", "ss")
    """of configs/cc4s"""


def main() -> None:
    """The command line above."""
    config = parse(StartupConfig, __doc__)
    draw_if_missing("data/demo")
    parts = {"import train": partial(time_of, [sys.executable, "-c", "import train"])}
    for stage in config.stages:
        command = [sys.executable, "train.py", "--config", f"configs/cc4s/{stage}.yaml", "--config", "configs/cc4s/demo.yaml"]
        parts[f"{stage}, to the first step"] = partial(step_times, command, 1)
    measured: dict[str, list[float]] = {what: [] for what in parts}
    for _ in range(config.runs):
        for what, part in parts.items():
            measured[what] += part()
    rows = [{"what": what, "seconds": statistics.median(seconds)} for what, seconds in measured.items()]
    print("| | seconds |\n|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['seconds']:.1f} |")
    print(as_json(rows, distributed.pick_device("auto")))


def time_of(command: list[str]) -> list[float]:
    """Seconds of a command in this repository, as the one of a list, as in `step_times`."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return [time.perf_counter() - start]


if __name__ == "__main__":
    run(main)
