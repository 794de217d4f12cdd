"""Trains one stage: build -> loop -> validate -> save.

    python train.py --config configs/cc4s/ur.yaml --data.root DIR --data.labels scribbles --out runs/ur
    torchrun --nproc_per_node 4 train.py --config ...

Writes OUT/config.yaml, last.pt, best.pt (by mIoU on the validation split), metrics.jsonl, pictures.png,
report.html and TensorBoard events. The next stage takes --init OUT/best.pt.
"""

import contextlib
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from config import Config, DataConfig, InferenceConfig, TrainConfig, parse
from datasets import open_index
from datasets.check import check, list_faults
from datasets.demo import draw_if_missing
from datasets.files import read_label
from datasets.index import under
from datasets.segmentation import SegmentationDataset, Superpixels, TrainingOrder, collate
from datasets.transforms import Augmentation, normalise
from engine import distributed
from engine.checkpoint import load_weights, read_checkpoint, save_checkpoint
from engine.inference import predict_probabilities
from engine.metrics import ConfusionMatrix
from engine.pictures import evenly, picture_grid
from engine.report import training_report
from errors import UserError, run
from methods import build_method
from methods.base import Method
from models.resnet import load_weights as load_backbone

PICTURES = 6  # rows of the picture grid


def main() -> None:
    config = parse(Config, __doc__)
    with distributed.joined(config.train.device) as process:
        config.train.precision = distributed.pick_precision(process.device, config.train.precision)
        train(config, process)


def train(config: Config, process: distributed.Process) -> None:
    """Runs the stage that `config` describes on this process."""
    settings, device = config.train, process.device
    out = Path(config.out)
    if (out / "last.pt").exists():
        raise UserError(f"{out} already holds a run: choose another --out, or delete it")

    torch.manual_seed(settings.seed)
    train_set, val_set = build_datasets(config, process)
    classes = train_set.index.classes
    method = build_method(config.method, config.model, len(classes))
    method.check_crop(config.data.crop)
    require_superpixels(config, method, train_set, process)
    if config.init is None:
        load_backbone(method.network.backbone, config.model.backbone, config.model.weights)
    else:
        load_weights(method, read_checkpoint(config.init), config.init, classes)
    steps = settings.steps or math.ceil(settings.epochs * len(train_set) / settings.batch_size)
    loader = build_loader(train_set, settings, steps, process, method.fewest_images)
    if process.is_main:
        for fault in list_faults(train_set.index, val_set.index):
            print(f"note: {fault}")
        check(train_set, config.data.train_split)
        check(val_set, config.data.val_split)
        shown = read_shown(val_set, config.data)
        start_run_folder(out, config)
    distributed.wait_for_all()

    method.to(device, memory_format=torch.channels_last)
    model = method
    if process.world > 1:
        if device.type == "cuda":
            method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
        model = DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = build_optimizer(model, settings)
    val_every = settings.val_steps or max(1, round(settings.val_epochs * len(train_set) / settings.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** settings.poly_power)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    torch.manual_seed(settings.seed + process.rank)  # dropout and views differ between processes
    batches = iter(loader)

    log = Log(out, steps) if process.is_main else None
    best = -math.inf
    for step in range(steps):
        method.train()
        method.begin_step(step, step * settings.batch_size / len(train_set))
        losses: dict[str, torch.Tensor] = {}
        for part in range(settings.accumulate):
            batch = to_device(next(batches), device)
            last_part = part == settings.accumulate - 1
            with contextlib.nullcontext() if last_part or model is method else model.no_sync():
                with distributed.autocast(device, settings.precision):
                    terms = model(batch)
                    loss = sum(terms.values()) / settings.accumulate
                scaler.scale(loss).backward()
            for name, term in terms.items():
                losses[name] = losses.get(name, 0) + term.detach() / settings.accumulate
        rate = schedule.get_last_lr()[0]
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

        done = step + 1
        epoch = done * settings.batch_size / len(train_set)
        to_log, to_validate = (done % every == 0 or done == steps for every in (settings.log_every, val_every))
        if to_log or to_validate:  # elsewhere the loss stays on the device, and nothing waits for it
            values = {name: term.item() for name, term in losses.items()}
            if not all(map(math.isfinite, values.values())):
                raise UserError(f"the loss is not finite at step {done} ({values}): lower --train.lr or use another precision")
            if log and to_log:
                log.losses(done, epoch, rate, values)
        if log:
            log.bar.update()
        if to_validate:
            scores = validate(method, val_set, settings, process)
            if log:
                log.scores(done, epoch, scores)
                state = {"step": done, "scores": scores, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                save_checkpoint(out / "last.pt", method, config, classes, **state)
                # A split without one labelled pixel has no mIoU: the newest is kept then.
                if not scores["miou"] <= best:
                    best = scores["miou"]
                    save_checkpoint(out / "best.pt", method, config, classes, step=done, scores=scores)
                log.pictures(done, draw_shown(method, shown, val_set.index.palette, device))
                training_report(out)
    if log:
        log.close()
        print(f"best val mIoU {100 * best:.2f}: {out / 'best.pt'}")


def build_datasets(config: Config, process: distributed.Process) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The training split with its augmentation, and the validation split."""
    data = config.data
    if process.is_main:
        draw_if_missing(data.root)
    distributed.wait_for_all()
    train_index = open_index(data.root, data.train_split, data.labels)
    val_index = open_index(data.root, data.val_split, data.truth)
    augment = Augmentation(data.crop, data.scale, data.rotation, data.rotation_probability, data.flip, data.blur)
    folder = under(Path(data.root), data.superpixels)
    wanted = config.method.soft_entropy or config.method.colour
    superpixels = Superpixels(folder) if wanted and folder.is_dir() else None
    return SegmentationDataset(train_index, augment, superpixels, config.train.seed), SegmentationDataset(val_index)


def require_superpixels(config: Config, method: Method, train_set: SegmentationDataset, process: distributed.Process) -> None:
    """Raises UserError where `method` cannot do without superpixels that are missing, and says so where it can."""
    if train_set.superpixels is not None:
        train_set.superpixels.check(train_set.index.names)
        return
    folder = under(Path(config.data.root), config.data.superpixels)
    remedy = f"python -m tools.superpixels {config.data.root} --split {config.data.train_split} --out {folder}"
    if method.needs_edges:
        raise UserError(f"superpixels {folder} not found, which the colour constraint needs: run {remedy}")
    if config.method.soft_entropy and process.is_main:
        print(f"note: no superpixels at {folder}: the soft entropy counts every pixel ({remedy} makes them)")


def start_run_folder(out: Path, config: Config) -> None:
    """Makes OUT with its config.yaml. Raises UserError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}: {error.filename}") from error


def build_optimizer(model: torch.nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)


def build_loader(
    dataset: SegmentationDataset, settings: TrainConfig, steps: int, process: distributed.Process, fewest_images: int
) -> DataLoader:
    """All batches of the run in order, this process's share of each, in `accumulate` parts a step.

    Raises UserError where a batch does not divide, or leaves a pass with less than `fewest_images`.
    """
    if settings.batch_size % (settings.accumulate * process.world):
        raise UserError(
            f"--train.batch_size {settings.batch_size} does not divide into --train.accumulate {settings.accumulate} parts "
            f"on {process.world} processes"
        )
    if settings.batch_size < settings.accumulate * process.world * fewest_images:
        raise UserError(
            f"--train.batch_size {settings.batch_size} is too small: this network needs {fewest_images} images in each of "
            f"{settings.accumulate} parts on {process.world} processes"
        )
    order = TrainingOrder(
        len(dataset), settings.batch_size // settings.accumulate, steps * settings.accumulate, settings.seed,
        process.rank, process.world,
    )  # fmt: skip
    return DataLoader(
        dataset, batch_sampler=order, num_workers=settings.workers, collate_fn=collate, pin_memory=process.device.type == "cuda"
    )


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`, its images channels-last."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    return batch


@torch.inference_mode()
def validate(method: Method, dataset: SegmentationDataset, settings: TrainConfig, process: distributed.Process) -> dict:
    """Scores on the whole split at one scale, as `ConfusionMatrix.scores` gives them; each process takes its share."""
    method.eval()
    matrix = ConfusionMatrix(len(dataset.index.classes))
    share = range(process.rank, len(dataset), process.world)
    loader = DataLoader(dataset, batch_size=None, sampler=share, num_workers=settings.workers)
    for item in loader:
        item = {name: tensor.to(process.device) for name, tensor in item.items()}
        with distributed.autocast(process.device, settings.precision):
            probabilities = predict_probabilities(method.predict, item["image"], InferenceConfig())
        matrix.update(probabilities.argmax(dim=0), item["label"])
    matrix.sum_over_processes(process.device)
    return matrix.scores(dataset.index.classes)


def read_shown(dataset: SegmentationDataset, data: DataConfig) -> list[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """Image, label (None where a validation image has none) and truth of the validation images in the picture grid."""
    labels = under(Path(data.root), data.labels)
    rows = []
    for position in evenly(len(dataset), PICTURES):
        image, maps = dataset.read(position)
        label = labels / f"{dataset.index.names[position]}.png"
        rows.append((image, read_label(label) if label.is_file() else None, maps["label"]))
    return rows


@torch.inference_mode()
def draw_shown(method: Method, shown: list[tuple], palette: np.ndarray, device: torch.device) -> Image.Image:
    """The picture grid: image, label (where any image has one: pseudo-labels are of training images), prediction, truth."""
    labelled = any(label is not None for _, label, _ in shown)
    rows = []
    for image, label, truth in shown:
        probabilities = predict_probabilities(method.predict, normalise(image).to(device), InferenceConfig())
        prediction = probabilities.argmax(dim=0).byte().cpu().numpy()
        rows.append([image, *([label] if labelled else []), prediction, truth])
    return picture_grid(rows, ["image", *(["label"] if labelled else []), "prediction", "truth"], palette)


class Log:
    """The progress bar, OUT/metrics.jsonl, TensorBoard and OUT/pictures.png."""

    def __init__(self, out: Path, steps: int):
        self.out = out
        self.bar = tqdm(total=steps, desc=out.name, unit="step", mininterval=0.5 if sys.stderr.isatty() else 15)
        self.lines = open(out / "metrics.jsonl", "w", buffering=1)  # noqa: SIM115, closed by close()
        self.board = SummaryWriter(out)
        self.start = time.monotonic()

    def losses(self, step: int, epoch: float, rate: float, values: dict[str, float]) -> None:
        """The loss terms of a step, and their sum."""
        values = {"loss": sum(values.values())} | values
        self.bar.set_postfix({"loss": f"{values['loss']:.3f}"})
        self._write(step, epoch, {"lr": rate} | values)

    def scores(self, step: int, epoch: float, scores: dict) -> None:
        """A validation's scores."""
        self.bar.write(f"step {step}: val mIoU {100 * scores['miou']:.2f}, Dice {100 * scores['dice']:.2f}")
        self._write(step, epoch, {f"val_{name}": scores[name] for name in ("miou", "dice", "pixel_accuracy")})

    def pictures(self, step: int, grid: Image.Image) -> None:
        """A picture grid."""
        grid.save(self.out / "pictures.png")
        self.board.add_image("pictures", np.asarray(grid), step, dataformats="HWC")

    def close(self) -> None:
        self.bar.close()
        self.lines.close()
        self.board.close()

    def _write(self, step: int, epoch: float, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        line = {"step": step, "epoch": round(epoch, 4), "seconds": round(time.monotonic() - self.start, 2)} | values
        print(json.dumps(line), file=self.lines)


if __name__ == "__main__":
    run(main)
