"""Hours of annotation that the labels of a run cost, and a figure of the scores over the hours."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from jsonargparse.typing import PositiveFloat, PositiveInt

from datasets.files import atomic_write
from errors import UserError

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator


@dataclass
class CostConfig:
    """What the labels of the runs cost."""

    seconds: dict[str, PositiveFloat] = field(default_factory=dict)
    """seconds of annotation per image, by kind of label"""
    runs: dict[str, dict[str, PositiveInt]] = field(default_factory=dict)
    """number of images of each kind of label, by run; a key may be a shell pattern of run names"""


def hours_of(name: str, cost: CostConfig) -> tuple[str, float] | None:
    """Returns the first key of `cost.runs` that matches the run `name`, and the hours that the run's labels cost. Returns None
    if no key matches. Raises UserError for a kind of label without seconds."""
    for pattern, labels in cost.runs.items():
        if fnmatch.fnmatchcase(name, pattern):
            unknown = [kind for kind in labels if kind not in cost.seconds]
            if unknown:
                raise UserError(f"--cost.runs {pattern}: {unknown[0]} is not in --cost.seconds ({', '.join(cost.seconds)})")
            return pattern, sum(count * cost.seconds[kind] for kind, count in labels.items()) / 3600
    return None


def draw_costs(points: Mapping[str, tuple[float, list[float]]], out: Path) -> None:
    """Draws mIoU over hours of annotation into the PNG `out`. points: key of `CostConfig.runs` -> (hours, mIoU of
    each run in [0, 1])."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, (hours, scores) in sorted(points.items(), key=lambda entry: entry[1][0]):
        percent = [100 * score for score in scores]
        mean = sum(percent) / len(percent)
        dots = axis.scatter([hours] * len(percent), percent, s=14)
        axis.scatter([hours], [mean], s=110, facecolor="none", edgecolor=dots.get_facecolor())  # a ring at the mean
        axis.annotate(f"{name.strip('_*')} {mean:.1f}", (hours, mean), xytext=(7, 4), textcoords="offset points", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlabel("hours of annotation")
    axis.set_ylabel("mIoU in %")
    axis.margins(x=0.25, y=0.15)
    axis.grid(alpha=0.3, which="both")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)
