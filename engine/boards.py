"""Boards: where a run is watched, beside metrics.jsonl. A board takes figures and pictures of a step.

tensorboard writes into OUT. mlflow writes to MLFLOW_TRACKING_URI (its default: a local store). wandb writes to the Weights &
Biases server, or into OUT with WANDB_MODE=offline. A run that resumes goes on in the same run of the board; MLflow then holds
the steps between the checkpoint and the stop twice.
"""

import importlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from config import BoardName
from datasets.files import write_text
from errors import UserError


class Board(Protocol):
    """A place to watch a run."""

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Takes figures by name."""

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Takes a picture."""

    def flush(self) -> None:
        """Returns when everything is written."""

    def close(self, finished: bool) -> None:
        """Ends the board's run. finished: whether all steps are done."""


class TensorBoard:
    """TensorBoard's event files in OUT."""

    def __init__(self, out: Path, first: int, settings: dict[str, Any]):
        self.writer = SummaryWriter(out, purge_step=first + 1)  # later steps of an earlier session are hidden

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Takes figures by name."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Takes a picture."""
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        """Returns when everything is written."""
        self.writer.flush()

    def close(self, finished: bool) -> None:
        """Closes the file."""
        self.writer.close()


class MLflow:
    """A run of MLflow, in the experiment of MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, out: Path, first: int, settings: dict[str, Any]):
        with _explained("mlflow"):
            self.client = _imported("mlflow").MlflowClient()
            earlier = _earlier(out / "mlflow.json") if first else None
            self.run = earlier or self._new_run(out, settings)
            self.client.update_run(self.run, "RUNNING")
        _remember(out / "mlflow.json", self.run)

    def _new_run(self, out: Path, settings: dict[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run = str(self.client.create_run(number, run_name=out.name).info.run_id)
        for key, value in settings.items():
            self.client.log_param(run, key, value)
        return run

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Takes figures by name."""
        for name, value in figures.items():  # names have the classes of the data, and MLflow refuses brackets, commas and more
            self.client.log_metric(self.run, re.sub(r"[^/\w.\- :]", "_", name), value, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Takes a picture."""
        self.client.log_image(self.run, picture, artifact_file=f"{name}/{step:07d}.png")

    def flush(self) -> None:
        """Does nothing: each call has written."""

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


class Wandb:
    """A run of Weights & Biases, in the project of WANDB_PROJECT."""

    def __init__(self, out: Path, first: int, settings: dict[str, Any]):
        with _explained("wandb"):
            self.wandb = _imported("wandb")
            earlier = _earlier(out / "wandb.json") if first else None
            how = {"id": earlier, "resume": "allow"} if earlier else {}
            quiet = self.wandb.Settings(console="off")  # the run has its own progress bar
            self.run = self.wandb.init(dir=str(out), name=out.name, config=settings, settings=quiet, **how)
        _remember(out / "wandb.json", self.run.id)

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Takes figures by name."""
        self.run.log(figures, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Takes a picture."""
        self.run.log({name: self.wandb.Image(picture)}, step=step)

    def flush(self) -> None:
        """Does nothing: a process of wandb writes."""

    def close(self, finished: bool) -> None:
        """Ends the run, and waits until everything is written."""
        self.run.finish(exit_code=int(not finished))


BOARDS: dict[BoardName, Callable[[Path, int, dict[str, Any]], Board]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
}


def open_boards(names: tuple[BoardName, ...], out: Path, first: int, settings: dict[str, Any]) -> list[Board]:
    """Opens the boards of a run. first: the step that the run resumes from. settings: by dotted key, for the board's table of
    runs. Raises UserError if a package is missing, or if a board cannot be opened."""
    opened: list[Board] = []
    try:
        for name in names:
            opened.append(BOARDS[name](out, first, settings))
    except UserError:
        for board in opened:
            board.close(finished=False)
        raise
    return opened


def check_boards(names: tuple[BoardName, ...]) -> None:
    """Raises UserError if the package of a board is missing."""
    for name in names:
        if name != "tensorboard":  # of the requirements
            _imported(name)


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"--log {package}: the package is missing: run pip install {package}") from error


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns the errors of a board's own package into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each package has its own kinds
        reason = str(error).strip().splitlines()
        raise UserError(f"--log {name}: cannot be opened ({reason[0] if reason else type(error).__name__})") from error


def _earlier(file: Path) -> str | None:
    return json.loads(file.read_text())["run"] if file.is_file() else None


def _remember(file: Path, run: str) -> None:
    write_text(file, json.dumps({"run": run}) + "\n")
