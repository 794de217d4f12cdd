"""Table and plot of benchmarks/robustness.sh: validation mIoU of each method over the amount of scribbles that is left.

    python -m benchmarks.plot_robustness FOLDER

Prints a Markdown table and writes FOLDER/robustness.png.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

from command_line import parse
from engine.metrics import read_evaluation
from errors import run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

METHODS = {"baseline": "baseline", "ur": "CC4S (UR)"}
SERIES = {
    "share of every stroke that is kept": {1.0: "all", 0.5: "shrink_0.5", 0.0: "shrink_0"},
    "probability that a stroke is dropped": {0.0: "all", 0.3: "drop_0.3", 0.5: "drop_0.5"},
}


@dataclass
class PlotConfig:
    """The folder of the study."""

    folder: str
    """the OUT_ROOT of benchmarks/robustness.sh"""


def main() -> None:
    """Runs the command line above. Raises UserError if a run of the study is missing."""
    folder = Path(parse(PlotConfig, __doc__, positional=True).folder)
    labels = list(dict.fromkeys(name for series in SERIES.values() for name in series.values()))
    miou = {
        (method, label): 100 * read_evaluation(folder / f"{method}_{label}" / "evaluation")["miou"]
        for method in METHODS
        for label in labels
    }
    print(f"| | {' | '.join(labels)} |")
    print("|---" * (len(labels) + 1) + "|")
    for method, title in METHODS.items():
        print(f"| {title} | " + " | ".join(f"{miou[method, label]:.2f}" for label in labels) + " |")

    figure, axes = plt.subplots(1, len(SERIES), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (title, series) in zip(axes, SERIES.items(), strict=True):
        for method, name in METHODS.items():
            axis.plot(list(series), [miou[method, label] for label in series.values()], marker="o", label=name)
        axis.set_xlabel(title)
        axis.set_xticks(list(series))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].invert_xaxis()  # in both panels, scribbles decrease from left to right
    axes[0].set_ylabel("validation mIoU, %")
    axes[0].legend()
    figure.savefig(folder / "robustness.png", dpi=110)
    print(f"plot: {folder / 'robustness.png'}")


if __name__ == "__main__":
    run(main)
