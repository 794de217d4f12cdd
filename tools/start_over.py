"""Deletes the runs of a chain of trainings, if the flags of train.py that follow say --fresh. The chain's script calls this.

python -m tools.start_over runs/cisc_r "pairs retrain1 retrain2" --config configs/cisc_r/voc.yaml --fresh
"""

import shutil
import sys
from pathlib import Path

from command_line import parse
from config import Config
from engine.run_folder import lock
from errors import run
from methods import SETTINGS


def main() -> None:
    """Runs the command above. Raises UserError for a wrong flag, or if a process trains in one of the runs; then nothing is
    deleted."""
    _, out, names, *flags = sys.argv
    if not parse(Config, __doc__, flags, methods=SETTINGS).fresh:
        return
    runs = [folder for name in names.split() if (folder := Path(out) / name).is_dir()]
    for folder in runs:
        lock(folder)
    for folder in runs:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run(main)
