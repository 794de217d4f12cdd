"""Seconds from the start of a command to the end of the first training step, for each stage, and seconds of the imports.

    python -m benchmarks.startup [--runs 3] [--stages "[baseline, ur]"]

Each run is `train.py` with a ResNet-18 on the demo data, which exist already. A run ends at the first line in metrics.jsonl.
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
    """The stages and the number of runs."""

    runs: PositiveInt = 3
    """runs per stage"""
    stages: tuple[str, ...] = ("baseline", "ur", "ss")
    """file names in configs/cc4s"""


def main() -> None:
    """Runs the command line above."""
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
    """Runs a command in this repository. Returns a list of one number, the seconds, like `step_times`."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return [time.perf_counter() - start]


if __name__ == "__main__":
    run(main)
