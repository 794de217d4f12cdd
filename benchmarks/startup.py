"""Seconds from the command to the first step done, by stage, and what of them is importing.

    python -m benchmarks.startup [--runs 3] [--stages "[baseline, ur]"]

Each run is `train.py` on the demo data (drawn before) with a ResNet-18, until the first line stands in metrics.jsonl.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from jsonargparse.typing import PositiveInt

from benchmarks.measure import ROOT, as_json, step_times
from config import parse
from datasets.demo import draw_if_missing
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
    measured: dict[str, list[float]] = {what: [] for what in ("import train", *config.stages)}
    for _ in range(config.runs):
        for what, seconds in measured.items():
            if what in config.stages:
                command = [sys.executable, "train.py", "--config", f"configs/cc4s/{what}.yaml", "--config", "configs/demo.yaml"]
                seconds.append(step_times(command, 1)[0])
            else:
                seconds.append(time_of([sys.executable, "-c", what]))
    rows = [{"what": what, "seconds": statistics.median(seconds)} for what, seconds in measured.items()]
    print("| | seconds |\n|---|---|")
    for row in rows:
        print(f"| {row['what']}{', to the first step' * (row['what'] in config.stages)} | {row['seconds']:.1f} |")
    print(as_json(rows, distributed.pick_device("auto")))


def time_of(command: list[str]) -> float:
    """Seconds of a command in this repository."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main)
