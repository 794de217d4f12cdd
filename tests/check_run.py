"""python tests/check_run.py RUN... checks run folders. Exit code 1 means that a file is missing or a number is not finite."""

import json
import math
import sys
from pathlib import Path

FILES = ("config.yaml", "run.json", "last.pt", "best.pt", "metrics.jsonl", "pictures.png", "report.html")


def problems(run: Path) -> list[str]:
    """The problems of a run folder, one line each."""
    found = [f"{run / name}: missing" for name in FILES if not (run / name).is_file()]
    if not list(run.glob("events*")):
        found.append(f"{run}: no TensorBoard events")
    if (run / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        if not any("loss" in line for line in lines) or not any("val_miou" in line for line in lines):
            found.append(f"{run / 'metrics.jsonl'}: no losses or no validation")
        found += [
            f"{run / 'metrics.jsonl'}: {name} is {value} at step {line['step']}"
            for line in lines
            for name, value in line.items()
            if value is None or not math.isfinite(value)
        ]
    return found


if __name__ == "__main__":
    everything = [problem for run in sys.argv[1:] for problem in problems(Path(run))]
    print("\n".join(everything) or f"{len(sys.argv) - 1} runs hold what the contract says")
    sys.exit(bool(everything))
