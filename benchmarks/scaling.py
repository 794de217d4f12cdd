"""Seconds per training step for several numbers of processes. torchrun starts train.py; the processes share one batch.

    python -m benchmarks.scaling                                             # CPU: one core, two by threads, two by processes
    python -m benchmarks.scaling --layouts "[1x8, 2x8, 4x8]" --stage ss \\
        --flags "--model.backbone resnet50 --data.crop 465 --train.batch_size 16"      # on a machine with four GPUs

A layout is PROCESSESxTHREADS, with THREADS threads in each process. Runs alternate between the layouts. The time of a run is
the mean over its steps. The time of a layout is the median over its runs.
"""

import shlex
import statistics
import sys
from dataclasses import dataclass

from jsonargparse.typing import PositiveInt

from benchmarks.measure import as_json, step_times
from command_line import parse
from datasets.drawing.demo import draw_if_missing
from engine import distributed
from errors import UserError, run

WARM = 3  # warm-up steps, not timed


@dataclass
class ScalingConfig:
    """The layouts and the training."""

    layouts: tuple[str, ...] = ("1x1", "1x2", "2x1")
    """PROCESSESxTHREADS"""
    stage: str = "ur"
    """file name in configs/cc4s"""
    flags: str = ""
    """more flags for train.py"""
    steps: PositiveInt = 12
    """timed steps per run"""
    runs: PositiveInt = 3
    """runs per layout"""


def main() -> None:
    """Runs the command line above."""
    config = parse(ScalingConfig, __doc__)
    draw_if_missing("data/demo")
    measured: dict[str, list[float]] = {layout: [] for layout in config.layouts}
    for _ in range(config.runs):
        for layout, seconds in measured.items():
            seconds.append(seconds_a_step(config, layout))
    print("| processes x threads | seconds a step | speed |\n|---|---|---|")
    medians = {layout: statistics.median(seconds) for layout, seconds in measured.items()}
    first = medians[config.layouts[0]]
    for layout, median in medians.items():
        print(f"| {layout} | {median:.3f} | {first / median:.2f} |")
    rows = [{"layout": layout, "seconds": median} for layout, median in medians.items()]
    print(as_json(rows, distributed.pick_device("auto"), stage=config.stage, flags=config.flags))


def seconds_a_step(config: ScalingConfig, layout: str) -> float:
    """Mean seconds of the timed steps of one run. Raises UserError for a layout in a wrong form."""
    processes, _, threads = layout.partition("x")
    if not (processes.isdecimal() and threads.isdecimal() and int(processes) and int(threads)):
        raise UserError(f"layout {layout!r}: write it PROCESSESxTHREADS, as 2x1")
    configs = ["--config", f"configs/cc4s/{config.stage}.yaml", "--config", "configs/cc4s/demo.yaml"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command = [*launch, "train.py", *configs, *shlex.split(config.flags)]
    times = step_times(command, WARM + config.steps, {"OMP_NUM_THREADS": threads})
    return (times[-1] - times[WARM - 1]) / config.steps


if __name__ == "__main__":
    run(main)
