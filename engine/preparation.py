"""What a training run is made of, built or taken up again before its first step."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from config import Config, DataConfig, TrainConfig
from datasets import open_index
from datasets.check import check, few_classes, list_problems
from datasets.drawing.demo import draw_if_missing
from datasets.files import shown_label
from datasets.index import Index, evenly, resolve_folder
from datasets.segmentation import SegmentationDataset, Superpixels
from engine import distributed
from engine.checkpoint import load_weights, read_checkpoint
from engine.inspection import first_batch
from engine.loading import Loaders, augmentation, check_batch
from engine.metrics import read_label_quality
from engine.nonfinite import FiniteCheck
from engine.run_folder import Log, origin, read_unfinished, start
from errors import UserError
from methods import build_method
from methods.base import Method
from models.resnet import load_backbone

PICTURES = 6  # rows of the picture grid, half of them training images
Shown = tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None]  # caption, image, label, truth


@dataclass
class Progress:
    """How far a run has come; saved with its weights."""

    step: int = 0
    """steps that are done"""
    best: float = -math.inf
    """highest validation mIoU"""
    skipped: int = 0
    """steps left out because their loss was not finite"""
    validated: bool = True
    """whether the validation that is due after `step` is done"""


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: Config
    process: distributed.Process
    out: Path
    classes: tuple[str, ...]
    steps: int
    """steps in all"""
    images: int
    """of the training split"""
    validate_every: int
    """steps between validations"""
    method: Method
    model: torch.nn.Module
    """the method, or on several processes what averages its gradients"""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    progress: Progress
    loaders: Loaders
    batches: Iterator[dict[str, torch.Tensor]]
    """of the steps that are left"""
    inspected: dict[str, torch.Tensor]
    """what `engine.inspection` looks at"""
    finite: FiniteCheck
    log: Log | None
    """of the main process"""
    shown: list[Shown]
    """images of the picture grid, of the main process"""

    @property
    def stateful(self) -> dict[str, object]:
        """What has a state of its own beside the method, by its name in a checkpoint."""
        return {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` steps."""
        return step * self.config.train.batch_size / self.images


def prepare(config: Config, process: distributed.Process) -> Run:
    """Builds the run that `config` describes, or takes up the one in OUT where it stopped; the main process prints what it is.

    Raises UserError for settings or data that cannot be trained with.
    """
    settings, data, device, out = config.train, config.data, process.device, Path(config.out)
    restarted = distributed.max_over_processes(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")) > 0
    unfinished = read_unfinished(config, restarted)
    if config.deterministic:
        be_deterministic()
    torch.manual_seed(settings.seed)
    train_index, val_index = open_splits(data, process)
    classes = train_index.classes
    method = build_method(config.method, config.model, len(classes))
    check_batch(settings, process, method.fewest_images)
    steps = settings.steps or math.ceil(settings.epochs * len(train_index) / settings.batch_size)
    method.check_settings(config, steps)
    superpixels = find_superpixels(data, method, train_index.names, process)
    train_set = SegmentationDataset(train_index, augmentation(data), superpixels, settings.seed)
    val_set = SegmentationDataset(val_index)
    progress = Progress()
    if unfinished:
        progress = Progress(**{name: unfinished[name] for name in vars(progress)})
        load_weights(method, unfinished, out / "last.pt", classes)
    elif config.init is not None:
        load_weights(method, read_checkpoint(config.init), config.init, classes)
    else:
        load_backbone(method.network.backbone, config.model.backbone, config.model.weights)
    shown, label_quality = [], {}
    if process.is_main:
        for note in chain(list_problems(train_index, val_index), odd_labels(train_set, val_set, data)):
            print(f"note: {note}")
        shown = read_shown(train_set, val_set, data)
        label_quality = read_label_quality(resolve_folder(Path(data.root), data.labels))
        start(config, origin(config, train_set, val_set), process.world, str(device), progress.step)
    distributed.wait_for_all()

    method.to(device, memory_format=torch.channels_last)
    if config.compile:
        compile_backbone(method)
    model = method
    if process.world > 1:
        if device.type == "cuda":
            method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
        model = DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = build_optimizer(model, settings)
    loaders = Loaders(train_set, val_set, settings, process)
    run = Run(
        config=config,
        process=process,
        out=out,
        classes=classes,
        steps=steps,
        images=len(train_set),
        validate_every=settings.val_steps or max(1, round(settings.val_epochs * len(train_set) / settings.batch_size)),
        method=method,
        model=model,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** settings.poly_power),
        scaler=torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16"),
        progress=progress,
        loaders=loaders,
        batches=loaders.training(steps, progress.step),
        inspected=first_batch(train_set, resolve_folder(Path(data.root), data.truth), settings, process),
        finite=FiniteCheck(train_set, settings, process),
        log=None,
        shown=shown,
    )
    if unfinished:
        for name, part in run.stateful.items():
            part.load_state_dict(unfinished[name])
    if process.is_main:
        describe(run, len(val_set))
        run.log = Log(out, steps, progress.step, progress.validated)
        if label_quality and not progress.step:
            run.log.figures(0, 0.0, label_quality)
    return run


def describe(run: Run, val_images: int) -> None:
    """Prints what is trained, in a line."""
    weights = sum(weight.numel() for weight in run.method.parameters())
    resuming = f"resuming after step {run.progress.step} of " if run.progress.step else ""
    print(
        f"{run.images} train and {val_images} val images, {len(run.classes)} classes, {weights / 1e6:.1f}M weights; "
        f"{resuming}{run.steps} steps ({run.epoch(run.steps):.1f} epochs) on {run.process.world} x {run.process.device.type} "
        f"in {run.config.train.precision}"
    )


def be_deterministic() -> None:
    """Makes torch choose reproducible algorithms, and raise where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it before its first call
    torch.use_deterministic_algorithms(True)


def compile_backbone(method: Method) -> None:
    """Has torch.compile make the backbone's kernels at its first pass; where it cannot, the backbone runs as it is."""
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.donated_buffer = False  # else no second backward pass, as engine/inspection.py takes
    method.network.backbone.compile()


def open_splits(data: DataConfig, process: distributed.Process) -> tuple[Index, Index]:
    """The training split with its labels, and the validation split with its masks. Raises UserError for what is missing."""
    if process.is_main:
        draw_if_missing(data.root)
    distributed.wait_for_all()
    train = open_index(data.root, data.train_split, data.labels)
    if data.tags == "labels":
        train = replace(train, tags=None)
    elif train.tags is None:
        raise UserError(f"--data.tags file: {data.root}/tags.json is missing, or lists none of split {data.train_split}")
    return train, open_index(data.root, data.val_split, data.truth)


def find_superpixels(
    data: DataConfig, method: Method, names: tuple[str, ...], process: distributed.Process
) -> Superpixels | None:
    """The superpixels of the training images, where `method` takes some. Raises UserError if it cannot do without what is
    missing, and says so where it can."""
    if not method.reads & {"boundary", "superpixel"}:
        return None
    folder = resolve_folder(Path(data.root), data.superpixels)
    if folder.is_dir():
        superpixels = Superpixels(folder, graph="superpixel" in method.reads)
        superpixels.check(names)
        return superpixels
    remedy = f"python -m tools.superpixels {data.root} --split {data.train_split} --out {folder}"
    if "superpixel" in method.reads:
        raise UserError(f"superpixels {folder} not found, whose edges a loss needs: run {remedy}")
    if process.is_main:
        print(f"note: no superpixels at {folder}: losses off their boundaries count every pixel ({remedy} makes them)")
    return None


def odd_labels(train_set: SegmentationDataset, val_set: SegmentationDataset, data: DataConfig) -> Iterator[str]:
    """What is odd about the splits' labels, one after the other; raises UserError for what cannot be read or does not fit."""
    for dataset, split in ((train_set, data.train_split), (val_set, data.val_split)):
        found = few_classes(check(dataset, split), dataset.index.classes, dataset.index.labels[0].parent)
        if found:
            yield found


def build_optimizer(model: torch.nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; one kernel for all weights."""
    common = {"lr": settings.lr * settings.lr_factor, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=settings.momentum, **common)
    return torch.optim.AdamW(model.parameters(), **common)


def read_shown(train_set: SegmentationDataset, val_set: SegmentationDataset, data: DataConfig) -> list[Shown]:
    """Caption, image, label and truth (None where there is none) of the training and validation images in the picture grid."""
    rows = []
    for dataset, split in ((train_set, data.train_split), (val_set, data.val_split)):
        for position in evenly(len(dataset), PICTURES // 2):
            name = dataset.index.names[position]
            files = (resolve_folder(Path(data.root), folder) / f"{name}.png" for folder in (data.labels, data.truth))
            label, truth = map(shown_label, files)
            rows.append((f"{split}: {name}", dataset.read(position)[0], label, truth))
    return rows
