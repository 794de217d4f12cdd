"""A run's folder: going on from what is in it, starting over, and what a run writes into it."""

import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import Config
from datasets.files import atomic_write
from datasets.index import Index, resolve_folder
from datasets.segmentation import SegmentationDataset
from engine.checkpoint import read_checkpoint
from engine.provenance import circumstances, file_sha256, lines_sha256
from errors import UserError

# What may change between a run's beginning and its going on, since no weight depends on it (of a step that has finite losses).
FREE = ("out", "fresh", "skip_nonfinite", "train.device", "train.workers", "train.loader_timeout", "train.inspect_steps")

# What predict.py and the tools write beside labels, to say how they were made.
LABEL_RECORDS = ("pseudo_labels.json", "scribbles.json", "points.json", "check_dataset.json")


def read_unfinished(config: Config, restarted: bool) -> dict | None:
    """The content of OUT/last.pt, to go on from; None where OUT holds no run, or with `fresh`, unless torchrun has `restarted`
    the command and this is the run that it began.

    Raises UserError if that run had other settings, naming them, or where OUT holds a checkpoint but no run.
    """
    last = Path(config.out) / "last.pt"
    if config.fresh and not restarted:
        return None
    if not last.exists():
        if (last.parent / "best.pt").exists():  # training saves last.pt first
            raise UserError(f"{config.out} holds best.pt without last.pt: choose another --out, or --fresh to delete it")
        return None
    content = read_checkpoint(last)
    if config.fresh and not content["config"].get("fresh"):  # it did not come so far as to delete another's
        return None
    was, now = _flat(content["config"]), _flat(asdict(config))
    differing = sorted(key for key in was.keys() | now.keys() if key not in FREE and was.get(key) != now.get(key))
    if differing:
        changes = ", ".join(f"{key} {was.get(key)} -> {now.get(key)}" for key in differing)
        raise UserError(
            f"{config.out} holds a run with different settings ({changes}): choose another --out, or --fresh to delete it"
        )
    if "optimizer" not in content:
        raise UserError(f"{last} is no training state: choose another --out, or --fresh to delete it")
    return content


def start(config: Config, made_from: dict, process_count: int, device: str, first: int) -> None:
    """Makes OUT, or for `first` > 0 takes it up again: config.yaml, and run.json, which tells what is needed to repeat the run.

    made_from: what `origin` says. Raises UserError if OUT cannot be written, where another process trains in it, or where
    the run was begun from something else.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        if not first:
            for old in ("last.pt", "best.pt", "metrics.jsonl", "pictures.png", "report.html", "run.json", "events.out.*"):
                for file in out.glob(old):
                    file.unlink()
            labelled = out / "pseudo_labels"  # by the checkpoint that is gone now; a stage 2 would be refused
            reads_them = resolve_folder(Path(config.data.root), config.data.labels).resolve() == labelled.resolve()
            if (labelled / "pseudo_labels.json").is_file() and not reads_them:
                shutil.rmtree(labelled)
        record = json.loads((out / "run.json").read_text()) if (out / "run.json").is_file() else {"sessions": []}
        changed = [name for name, now in made_from.items() if record.get(name, now) != now]
        if changed:
            raise UserError(
                f"{out} holds a run whose {' and '.join(changed)} changed since (its run.json tells from what): choose another "
                "--out, or --fresh to delete it"
            )
        with atomic_write(out / "config.yaml") as temporary:
            # To be given as --config again: that must not delete or go on with this run.
            settings = {name: value for name, value in asdict(config).items() if name not in ("out", "fresh")}
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False))
        record |= made_from
        record["sessions"].append({"first_step": first, "device": device, "processes": process_count, **circumstances()})
        with atomic_write(out / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}: {error.filename or '.lock'}") from error


def lock(out: Path) -> None:
    """Keeps other trainings out of a folder for as long as this process lives. Raises UserError if one is in it."""
    file = os.open(out / ".lock", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which loader workers do not inherit
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"another process is training in {out}: wait for it, or choose another --out") from error


def split_record(index: Index) -> dict:
    """Which images a split has: their number, the SHA-256 of the list of their names, and the classes."""
    return {"images": len(index), "list_sha256": lines_sha256(index.names), "classes": list(index.classes)}


def origin(config: Config, train_set: SegmentationDataset, val_set: SegmentationDataset) -> dict:
    """What a run is made from that its settings only point to: the lists of images, and hashes of the checkpoint of --init and
    of the records beside labels and superpixels that were made."""
    labels = resolve_folder(Path(config.data.root), config.data.labels)
    superpixels = train_set.superpixels and _hashes([train_set.superpixels.folder / "superpixels.json"])
    checkpoints = {name: path for name, path in (("init", config.init), ("teacher", config.teacher)) if path}
    splits = {"train": train_set, "val": val_set} | ({"labelled": train_set.labelled} if train_set.labelled else {})
    return {
        "data": {name: split_record(split.index) for name, split in splits.items()},
        "labels": _hashes(labels / name for name in LABEL_RECORDS),
        "superpixels": superpixels,
        **{name: _hashes([Path(path)]) for name, path in checkpoints.items() if Path(path).is_file()},
    }


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of each file that exists, by its name."""
    return {file.name: file_sha256(file) for file in files if file.is_file()}


class Log:
    """The progress bar, OUT/metrics.jsonl, TensorBoard and OUT/pictures.png.

    first: the step that the run goes on from, and whether its validation, if any is due, is done (`validated`); what an earlier
    session wrote of what comes after is dropped, since it comes again.
    """

    def __init__(self, out: Path, steps: int, first: int, validated: bool):
        self.out = out
        metrics = out / "metrics.jsonl"
        with atomic_write(metrics) as temporary:
            temporary.write_text("".join(_lines_until(metrics, first, validated)))
        self.lines = open(metrics, "a", buffering=1)  # noqa: SIM115, closed by close()
        self.board = SummaryWriter(out, purge_step=first + 1)
        interval = 0.5 if sys.stderr.isatty() else 15
        self.bar = tqdm(total=steps, initial=first, desc=out.name, unit="step", mininterval=interval)

    def losses(self, step: int, epoch: float, rate: float, values: dict[str, float]) -> None:
        """The loss terms of a step, and their sum."""
        values = {"loss": sum(values.values())} | values
        self.bar.set_postfix({"loss": f"{values['loss']:.3f}"})
        self._write(step, epoch, {"lr": rate} | values)

    def figures(self, step: int, epoch: float, figures: dict[str, float]) -> None:
        """Figures by name, such as those of `engine.inspection.look_inside`."""
        self._write(step, epoch, figures)

    def scores(self, step: int, epoch: float, scores: dict) -> None:
        """A validation's scores."""
        self.bar.write(f"step {step}: val mIoU {100 * scores['miou']:.2f}, Dice {100 * scores['dice']:.2f}")
        self._write(step, epoch, {f"val_{name}": scores[name] for name in ("miou", "dice", "pixel_accuracy")})

    def pictures(self, step: int, grid: Image.Image) -> None:
        """A picture grid."""
        with atomic_write(self.out / "pictures.png") as temporary:
            grid.save(temporary, "PNG")
        self.board.add_image("pictures", np.asarray(grid), step, dataformats="HWC")

    def flush(self) -> None:
        """Returns when the lines so far are on the disk: a checkpoint must not be ahead of them."""
        os.fsync(self.lines.fileno())
        self.board.flush()

    def close(self) -> None:
        self.bar.close()
        self.lines.close()
        self.board.close()

    def _write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        print(json.dumps({"step": step, "epoch": round(epoch, 4)} | line), file=self.lines)


def _lines_until(metrics: Path, step: int, validated: bool) -> list[str]:
    """The whole lines of metrics.jsonl up to a step, with or without its validation; the last may have been cut off."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.is_file() else []
    kept = []
    for line in lines:
        if line.endswith("\n"):
            content = json.loads(line)
            if content["step"] < step or (content["step"] == step and (validated or "val_miou" not in content)):
                kept.append(line)
    return kept


def _flat(section: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted keys, as JSON would give them back."""
    flat: dict[str, object] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.loads(json.dumps(value))}
    return flat
