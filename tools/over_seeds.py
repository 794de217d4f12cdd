"""A table over seeds: the score of each run with each seed, the mean with its standard error, and differences from a control.

    python -m tools.over_seeds runs/few                         # runs/few/SEED/RUN, evaluated by evaluate.sh
    python -m tools.over_seeds runs/few --against supervised    # and each run minus `supervised`, seed by seed

Prints Markdown. The difference is taken within each seed before the mean: seeds that are easy for both runs do not count.
"""

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from command_line import parse
from engine.metrics import METRICS, read_evaluation
from errors import UserError, run
from tools.compare import EVALUATION, find_runs


@dataclass
class OverSeedsConfig:
    """The runs and the score."""

    folder: str
    """folder of folders of runs, one for each seed"""
    _: KW_ONLY
    against: str | None = None
    """name of the run to subtract"""
    score: Literal["miou", "dice", "pixel_accuracy"] = "miou"
    """score"""


def main() -> None:
    """Runs the command line above. Raises UserError for a folder without evaluated runs, or an unknown control."""
    config = parse(OverSeedsConfig, __doc__, positional=True)
    scores = read_scores(Path(config.folder), config.score)
    if config.against is not None and config.against not in scores:
        raise UserError(f"--against {config.against}: choose {', '.join(scores)}")
    print("\n".join(table(scores, config.against)))


def read_scores(folder: Path, score: str) -> dict[str, dict[str, float]]:
    """Returns run -> seed -> score in percent. Raises UserError if there is no evaluated run."""
    scores: dict[str, dict[str, float]] = {}
    seeds = sorted({path.parents[2] for path in folder.glob(f"*/*/{EVALUATION}/{METRICS}")})
    if not seeds:
        raise UserError(f"{folder}: no evaluated run SEED/RUN in it")
    for seed in seeds:
        for path in find_runs(seed):
            scores.setdefault(path.name, {})[seed.name] = 100 * read_evaluation(path / EVALUATION)[score]
    return scores


def table(scores: dict[str, dict[str, float]], against: str | None) -> list[str]:
    """Returns the lines of the table, in Markdown."""
    seeds = sorted({seed for of_run in scores.values() for seed in of_run})
    head = ["run", *(f"seed {seed}" for seed in seeds), "mean", *([f"minus {against}"] if against else [])]
    lines = [_row(head), _row("---" for _ in head)]
    for name, of_run in scores.items():
        cells = [name, *(f"{of_run[seed]:.1f}" if seed in of_run else "-" for seed in seeds), mean(of_run.values())]
        if against:
            control = scores[against]
            differences = [value - control[seed] for seed, value in of_run.items() if seed in control]
            cells.append("" if name == against else mean(differences, "+") if differences else "-")
        lines.append(_row(cells))
    return lines


def mean(values: Iterable[float], sign: Literal["", "+"] = "") -> str:
    """Returns the mean, and ± its standard error for two values and more."""
    numbers = np.array(list(values))
    text = f"{numbers.mean():{sign}.1f}"
    return text if len(numbers) < 2 else f"{text} ± {numbers.std(ddof=1) / math.sqrt(len(numbers)):.1f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
