"""The run folder: resuming a run, starting over, and the files that a run writes."""

import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import yaml
from PIL import Image
from tqdm import tqdm

from config import Config
from datasets.files import atomic_write, write_text
from datasets.index import Index, resolve_folder
from datasets.segmentation import SegmentationDataset
from engine.boards import Board, open_boards
from engine.checkpoint import read_checkpoint
from engine.provenance import circumstances, file_sha256, lines_sha256
from engine.shared import weights_file
from errors import UserError

# Settings that may change when a run resumes. No weight depends on them, if all losses are finite.
CHANGEABLE = (
    "out",
    "fresh",
    "log",
    "skip_nonfinite",
    "train.device",
    "train.workers",
    "train.loader_timeout",
    "train.inspect_steps",
)

LOCK = ".lock"
# Files that predict.py and the tools write beside labels, to record how the labels were made.
LABEL_RECORDS = ("pseudo_labels.json", "scribbles.json", "points.json", "check_dataset.json")


def read_unfinished(config: Config, restarted: bool) -> dict | None:
    """Returns the content of OUT/last.pt to resume from, or None if OUT holds no run. With `fresh`, returns None, except if
    torchrun has `restarted` the command and OUT holds the run of this command.

    Raises UserError with the settings that differ from the run in OUT, or if OUT holds a checkpoint but no run.
    """
    last = Path(config.out) / "last.pt"
    if config.fresh and not restarted:
        return None
    if not last.exists():
        if (last.parent / "best.pt").exists():  # training writes last.pt before best.pt
            raise UserError(f"{config.out} holds best.pt without last.pt: choose another --out, or --fresh to delete it")
        return None
    content = read_checkpoint(last)
    if config.fresh and not content["config"].get("fresh"):  # an older run, which the command did not delete before the restart
        return None
    usual = _flat(asdict(Config(type(config.method)(config.method.name))))  # of settings that were not there when the run began
    was, now = usual | _flat(content["config"]), _flat(asdict(config))
    differing = sorted(key for key in was.keys() | now.keys() if key not in CHANGEABLE and was.get(key) != now.get(key))
    if differing:
        changes = ", ".join(f"{key} {was.get(key)} -> {now.get(key)}" for key in differing)
        raise UserError(
            f"{config.out} holds a run with different settings ({changes}): choose another --out, or --fresh to delete it"
        )
    if "optimizer" not in content:
        raise UserError(f"{last} has no training state: choose another --out, or --fresh to delete it")
    return content


def open_run_folder(config: Config, made_from: dict, process_count: int, device: str, first: int) -> None:
    """Makes OUT, or reopens OUT if `first` > 0. Writes config.yaml and run.json. run.json has what is needed to repeat the run.

    made_from: the result of `origin`. first: the step to start at. Raises UserError if OUT cannot be written, if another
    process trains in OUT, or if the run began from other data or checkpoints.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        if not first:
            for old in (
                "last.pt",
                "best.pt",
                "metrics.jsonl",
                "pictures.png",
                "inside.png",
                "report.html",
                "run.json",
                "mlflow.json",
                "wandb.json",
                "events.out.*",
            ):
                for file in out.glob(old):
                    file.unlink()
            labelled = out / "pseudo_labels"  # of the deleted checkpoint; stage 2 would refuse these labels
            reads_them = resolve_folder(Path(config.data.root), config.data.labels).resolve() == labelled.resolve()
            if (labelled / "pseudo_labels.json").is_file() and not reads_them:
                shutil.rmtree(labelled)
        record = json.loads((out / "run.json").read_text()) if (out / "run.json").is_file() else {"sessions": []}
        changed = [name for name, now in made_from.items() if record.get(name, now) != now]
        if changed:
            raise UserError(
                f"{out} holds a run whose {' and '.join(changed)} changed since it began (hashes in run.json): choose "
                "another --out, or --fresh to delete it"
            )
        # A user may give this file as --config. This must not delete or resume the run.
        settings = {name: value for name, value in asdict(config).items() if name not in ("out", "fresh")}
        write_text(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        record |= made_from
        record["sessions"].append({"first_step": first, "device": device, "processes": process_count, **circumstances()})
        write_text(out / "run.json", json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}: {error.filename or LOCK}") from error


def lock(out: Path) -> None:
    """Locks a run folder until this process ends. Raises UserError if another training holds the lock."""
    file = os.open(out / LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader workers do not inherit this lock
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"another process is training in {out}: wait for it, or choose another --out") from error


def lock_if_there(out: Path) -> None:
    """Locks a run folder that exists, before its state is read: a run that ends now may still write. Raises UserError as
    `open_run_folder`."""
    if (out / LOCK).is_file():
        try:
            lock(out)
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}: {error.filename or LOCK}") from error


def split_record(index: Index) -> dict:
    """Returns the record of a split: the number of images, the SHA-256 of the list of names, and the classes."""
    return {"images": len(index), "list_sha256": lines_sha256(index.names), "classes": list(index.classes)}


def origin(config: Config, train_set: SegmentationDataset, val_set: SegmentationDataset) -> dict:
    """Returns what a run is made from beside its settings: the lists of images, and hashes of the tags in tags.json, of the
    checkpoints of --init and --teacher, of the lists of partners, and of the records beside generated labels and
    superpixels."""
    folders = {"labels": config.data.labels} | ({"labelled": config.data.labelled.labels} if train_set.labelled else {})
    records = {name: resolve_folder(Path(config.data.root), folder) for name, folder in folders.items()}
    superpixels = train_set.superpixels and _hashes([train_set.superpixels.folder / "superpixels.json"])
    files = {"init": config.init, "teacher": config.teacher, "partners": config.data.partners.lists}
    splits = {"train": train_set, "val": val_set} | ({"labelled": train_set.labelled} if train_set.labelled else {})
    tags = train_set.index.tags
    return {
        "data": {name: split_record(split.index) for name, split in splits.items()},
        **{name: _hashes(folder / record for record in LABEL_RECORDS) for name, folder in records.items()},
        "superpixels": superpixels,
        **({} if tags is None else {"tags": lines_sha256(tags.tolist())}),
        **{name: hashes for name, path in files.items() if path and (hashes := _hashes([weights_file(path)]))},
    }


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    """Returns file name -> SHA-256 of each file that exists."""
    return {file.name: file_sha256(file) for file in files if file.is_file()}


class Log:
    """Writes the progress bar, OUT/metrics.jsonl, OUT/pictures.png, OUT/inside.png, and to the boards of `--log`.

    steps: of the whole run. first: the step that the run resumes from. validated: whether the validation due at this step is
    finished. Later lines of an earlier session are dropped, because the run writes them again. Raises UserError if a board
    cannot be opened.
    """

    def __init__(self, config: Config, steps: int, first: int, validated: bool):
        self.out = out = Path(config.out)
        self.boards = open_boards(config.log, out, first, _flat(asdict(config)))
        metrics = out / "metrics.jsonl"
        write_text(metrics, "".join(_lines_until(metrics, first, validated)))
        self.lines = open(metrics, "a", buffering=1)  # noqa: SIM115, closed by close()
        interval = 0.5 if sys.stderr.isatty() else 15
        self.bar = tqdm(total=steps, initial=first, desc=out.name, unit="step", mininterval=interval)

    def losses(self, step: int, epoch: float, rate: float, values: dict[str, float]) -> None:
        """Logs the loss terms of a step, and their sum."""
        values = {"loss": sum(values.values())} | values
        self.bar.set_postfix({"loss": f"{values['loss']:.3f}"})
        self._write(step, epoch, {"lr": rate} | values)

    def figures(self, step: int, epoch: float, figures: dict[str, float]) -> None:
        """Logs figures by name, such as the result of `engine.inspection.look_inside`."""
        self._write(step, epoch, figures)

    def scores(self, step: int, epoch: float, scores: dict) -> None:
        """Logs the scores of a validation."""
        self.bar.write(f"step {step}: val mIoU {100 * scores['miou']:.2f}, Dice {100 * scores['dice']:.2f}")
        self._write(step, epoch, {f"val_{name}": scores[name] for name in ("miou", "dice", "pixel_accuracy")})

    def pictures(self, step: int, grid: Image.Image, name: str = "pictures") -> None:
        """Writes a picture grid to OUT/NAME.png and the boards."""
        with atomic_write(self.out / f"{name}.png") as temporary:
            grid.save(temporary, "PNG")
        self._tell(lambda board: board.picture(step, name, grid))

    def flush(self) -> None:
        """Returns when all lines are on the disk. A checkpoint must not be ahead of the lines."""
        os.fsync(self.lines.fileno())
        self._tell(lambda board: board.flush())

    def close(self) -> None:
        """Closes the file and the boards."""
        finished = self.bar.n >= self.bar.total
        self.bar.close()
        self.lines.close()
        self._tell(lambda board: board.close(finished))

    def _write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        print(json.dumps({"step": step, "epoch": round(epoch, 4)} | line), file=self.lines)
        self._tell(lambda board: board.figures(step, values))

    def _tell(self, what: Callable[[Board], None]) -> None:
        """Tells every board. A board that fails is left out from then on: a server that restarts must not end a run of days.
        metrics.jsonl has all figures."""
        for board in tuple(self.boards):
            try:
                what(board)
            except Exception as error:  # each board's package has its own kinds
                self.boards.remove(board)
                name = type(board).__name__
                self.bar.write(f"note: {name} failed and gets nothing more until the run resumes ({error})", file=sys.stderr)


def _lines_until(metrics: Path, step: int, validated: bool) -> list[str]:
    """Returns the complete lines of metrics.jsonl up to a step, with or without its validation. A cut-off line is dropped."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    kept = []
    for line in lines:
        if line.endswith("\n"):
            content = json.loads(line)
            if content["step"] < step or (content["step"] == step and (validated or "val_miou" not in content)):
                kept.append(line)
    return kept


def _flat(section: dict, prefix: str = "") -> dict[str, object]:
    """Returns nested settings by dotted key, with the values that JSON would give back."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.loads(json.dumps(value))}
    return flat
