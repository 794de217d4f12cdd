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

from benchmarks.measure import ROOT, conditions, step_times
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
    print(", ".join(f"{name} {value}" for name, value in conditions(distributed.pick_device("auto")).items()))
    imports = statistics.median(seconds([sys.executable, "-c", "import train"]) for _ in range(config.runs))
    print(f"import train: {imports:.1f} s")
    for stage in config.stages:
        command = [sys.executable, "train.py", "--config", f"configs/cc4s/{stage}.yaml", "--config", "configs/demo.yaml"]
        passed = statistics.median(step_times(command, 1)[0] for _ in range(config.runs))
        print(f"{stage}: {passed:.1f} s to the first step")


def seconds(command: list[str]) -> float:
    """Of a command in this repository."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main)
