"""Seconds from the command to the first step done, by stage, and what of them is importing.

    python -m benchmarks.startup [--runs 3] [--stages "[baseline, ur]"]

Each run is `train.py` on the demo data (drawn before) with a ResNet-18, until the first line stands in metrics.jsonl.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from benchmarks.measure import conditions
from config import parse
from datasets.demo import draw_if_missing
from engine import distributed
from errors import run

ROOT = Path(__file__).parent.parent


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
        print(f"{stage}: {statistics.median(first_step(stage) for _ in range(config.runs)):.1f} s to the first step")


def seconds(command: list[str]) -> float:
    """Of a command in this repository."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - start


def first_step(stage: str) -> float:
    """Seconds until a training run has written the losses of its first step; it is ended then. Raises RuntimeError where it
    ends before by itself."""
    with tempfile.TemporaryDirectory() as out:
        configs = ["--config", f"configs/cc4s/{stage}.yaml", "--config", "configs/demo.yaml"]
        command = [sys.executable, "train.py", *configs, "--train.log_every", "1", "--out", out]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        metrics = Path(out) / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read().decode())
            time.sleep(0.01)
        passed = time.perf_counter() - start
        process.kill()
        process.wait()
        return passed


if __name__ == "__main__":
    run(main)
