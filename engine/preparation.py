"""Builds or resumes a training run before its first step."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from config import Config, DataConfig, TrainConfig
from datasets import open_index
from datasets.batch import Batch
from datasets.check import check, few_classes, list_problems
from datasets.drawing.demo import draw_if_missing
from datasets.files import read_label_or_none
from datasets.index import Index, resolve_folder, spread_positions
from datasets.partners import Partners, class_lists, read_class_lists
from datasets.segmentation import LABELLED_STREAM, PARTNER_STREAM, SegmentationDataset, Superpixels
from engine import distributed
from engine.boards import check_boards
from engine.checkpoint import check_classes, load_model, load_weights, read_checkpoint
from engine.inspection import first_batch
from engine.loading import Loaders, augmentation, check_batch
from engine.metrics import read_label_quality
from engine.nonfinite import FiniteCheck
from engine.run_folder import Log, lock_if_there, open_run_folder, origin, read_unfinished
from errors import UserError
from methods import build_method
from methods.base import Method
from models.pretrained import load_encoder

PICTURES = 6  # rows of the picture grid, half of them training images
Shown = tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None]  # caption, image, label, truth


@dataclass
class Progress:
    """Progress of a run, saved with its weights."""

    step: int = 0
    """number of finished steps"""
    best: float = -math.inf
    """highest validation mIoU"""
    skipped: int = 0
    """number of non-finite steps that were skipped"""
    validated: bool = True
    """whether the validation due after `step` is finished"""


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: Config
    process: distributed.Process
    out: Path
    classes: tuple[str, ...]
    steps: int
    """number of steps of the whole run"""
    images: int
    """number of training images"""
    validate_every: int
    """steps between validations"""
    method: Method
    model: torch.nn.Module
    """the method; on several processes, inside DistributedDataParallel"""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    progress: Progress
    loaders: Loaders
    batches: Iterator[Batch]
    """batches of the remaining steps"""
    inspected: Batch
    """batch for `engine.inspection`"""
    finite: FiniteCheck
    log: Log | None
    """None except on the main process"""
    shown: list[Shown]
    """images of the picture grid; empty except on the main process"""

    @property
    def stateful(self) -> dict[str, Any]:
        """Returns name in a checkpoint -> part with a state, beside the method."""
        return {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` steps."""
        return step * self.config.train.batch_size / self.images


def prepare(config: Config, process: distributed.Process) -> Run:
    """Builds the run of `config`, or resumes the run in OUT. The main process prints a summary.

    Raises UserError for settings or data that training cannot use.
    """
    settings, data, device, out = config.train, config.data, process.device, Path(config.out)
    # torchrun counts here how often it has restarted the command.
    restarted = distributed.max_over_processes(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")) > 0
    if process.is_main:
        lock_if_there(out)
    distributed.wait_for_all()
    unfinished = read_unfinished(config, restarted)
    if config.deterministic:
        be_deterministic()
    torch.manual_seed(settings.seed)
    check_boards(config.log)
    if process.is_main:
        draw_if_missing(data.root)
    distributed.wait_for_all()
    val_set = SegmentationDataset(open_index(data.root, data.val_split, data.truth))
    classes = val_set.index.classes
    method = build_method(config.method, config.model, len(classes))
    train_set = open_training(config, method, process)
    check_batch(settings, process, method.fewest_images, method.fewest_in_process)
    steps = settings.steps or math.ceil(settings.epochs * len(train_set) / settings.batch_size)
    method.check_settings(config, steps, steps * settings.batch_size / len(train_set))
    teacher = load_teacher(config, method, classes)
    load_first_weights(config, method, classes, teacher, unfinished)
    progress = Progress(**{name: unfinished[name] for name in vars(Progress())}) if unfinished else Progress()
    shown, label_quality = [], {}
    if process.is_main:
        of_lists = list_problems(train_set.index, val_set.index)
        if train_set.labelled:
            of_lists += list_problems(train_set.labelled.index, val_set.index, "labelled")
        for note in chain(crop_note(method, data.crop), of_lists, label_notes(train_set, val_set, data)):
            print(f"note: {note}")
        shown = read_grid_images(train_set, val_set, data)
        if train_set.index.labels:  # of pseudo-labels: how right they are, as predict.py has counted
            label_quality = read_label_quality(resolve_folder(Path(data.root), data.labels))
        open_run_folder(config, origin(config, train_set, val_set), process.world, str(device), progress.step)
    distributed.wait_for_all()

    for network in filter(None, (method, teacher)):
        distributed.move_to_device(network, device)
    if config.compile:
        compile_backbone(method)
    model: torch.nn.Module = method
    if process.world > 1:
        if device.type == "cuda":
            method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
        model = DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = build_optimizer(method, settings)
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
        run.log = Log(config, steps, progress.step, progress.validated)
        if label_quality and not progress.step:
            run.log.figures(0, 0.0, label_quality)
    return run


def describe(run: Run, val_images: int) -> None:
    """Prints a summary of the run in one line."""
    weights = sum(weight.numel() for weight in trained_weights(run.method))
    resuming = f"resuming after step {run.progress.step} of " if run.progress.step else ""
    print(
        f"{run.images} train and {val_images} val images, {len(run.classes)} classes, {weights / 1e6:.1f}M weights; "
        f"{resuming}{run.steps} steps ({run.epoch(run.steps):.1f} epochs) on {run.process.world} x {run.process.device.type} "
        f"in {run.config.train.precision}"
    )


def be_deterministic() -> None:
    """Makes torch choose reproducible algorithms, and raise an error where none exists."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it in its first call
    torch.use_deterministic_algorithms(True)


def compile_backbone(method: Method) -> None:
    """Makes torch.compile compile the backbone in its first pass. If this fails, the backbone runs uncompiled."""
    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.donated_buffer = False  # engine/inspection.py repeats the backward pass
    method.network.backbone.compile()


def open_training(config: Config, method: Method, process: distributed.Process) -> SegmentationDataset:
    """Returns the training images with the maps that `method` reads. Raises UserError for missing data."""
    data, reads, seed = config.data, method.reads, config.train.seed
    tags_of_labels = "tags" in reads and data.tags == "labels"
    index = open_index(data.root, data.train_split, data.labels if "label" in reads or tags_of_labels else None)
    if data.tags == "labels":
        index = replace(index, tags=None)
    elif index.tags is None:
        raise UserError(f"--data.tags file: {data.root}/tags.json is missing, or lists no image of split {data.train_split}")
    labelled = None
    if "labelled" in reads:
        if data.labelled.split is None:
            raise UserError(f"method {config.method.name} reads labelled images: name their list by --data.labelled.split")
        split = open_index(data.root, data.labelled.split, data.labelled.labels)
        labelled = SegmentationDataset(split, augmentation(data, "labelled"), seed=seed, stream=LABELLED_STREAM)
    superpixels = find_superpixels(data, method, index.names, process)
    partners = None
    if "partner" in reads:
        partners = open_partners(data, index, labelled.index if labelled else index, seed)
    strong = augmentation(data, "strong") if "strong" in reads else None
    return SegmentationDataset(index, augmentation(data), superpixels, seed, labelled, partners=partners, strong=strong)


def open_partners(data: DataConfig, training: Index, labelled: Index, seed: int) -> Partners:
    """Returns the partners of the training images among the labelled images. Raises UserError for bad lists, or if an image has
    no partner but itself."""
    if len(set(labelled.names)) < 2 and set(labelled.names) & set(training.names):
        raise UserError(f"{labelled.names[0]} is the only labelled image: a partner must be another image")
    settings = data.partners
    if settings.lists is None:
        lists = class_lists(labelled, settings.first_class)
    else:
        lists = read_class_lists(Path(settings.lists), labelled)
    dataset = SegmentationDataset(labelled, augmentation(data, "partner"), seed=seed, stream=PARTNER_STREAM)
    return Partners(dataset, lists, settings.first_class)


def load_first_weights(
    config: Config, method: Method, classes: tuple[str, ...], teacher: Method | None, unfinished: dict | None
) -> None:
    """Fills `method` for its first step: from `unfinished`, the content of last.pt, or from --init, or its backbone from
    --model.weights. Raises UserError for weights that do not fit."""
    if not unfinished and config.init is not None:
        load_weights(method, read_checkpoint(config.init), config.init, classes)
    elif not unfinished:
        load_encoder(method.network.backbone, config.model.backbone, config.model.weights)
    method.begin_training(teacher)
    if unfinished:  # last, so that a saved average replaces the one that has just begun
        load_weights(method, unfinished, Path(config.out) / "last.pt", classes)


def load_teacher(config: Config, method: Method, classes: tuple[str, ...]) -> Method | None:
    """Returns the network of --teacher in evaluation mode, without gradients, or None. Raises UserError if a method that needs
    a teacher has none, or if a method without teacher is given one."""
    if ("teacher" in method.reads) != (config.teacher is not None):
        needs = "needs a teacher: name a checkpoint by" if config.teacher is None else "takes no teacher: leave out"
        raise UserError(f"method {config.method.name} {needs} --teacher")
    if config.teacher is None:
        return None
    teacher = load_model(config.teacher)
    check_classes(teacher.classes, classes, config.teacher)
    return teacher.requires_grad_(False)


def find_superpixels(
    data: DataConfig, method: Method, names: tuple[str, ...], process: distributed.Process
) -> Superpixels | None:
    """Returns the superpixels of the training images, or None. If superpixels are missing, raises UserError if `method` needs
    the graph, and prints a note if `method` reads the boundaries alone."""
    if not method.reads & {"boundary", "superpixel"}:
        return None
    folder = resolve_folder(Path(data.root), data.superpixels)
    if folder.is_dir():
        superpixels = Superpixels(folder, graph="superpixel" in method.reads)
        superpixels.check(names)
        return superpixels
    remedy = f"python -m tools.superpixels {data.root} --split {data.train_split} --out {folder}"
    if "superpixel" in method.reads:
        raise UserError(f"superpixels {folder} not found; a loss needs their edges: run {remedy}")
    if process.is_main:
        print(f"note: no superpixels at {folder}: losses count every pixel, also at boundaries; to make superpixels: {remedy}")
    return None


def crop_note(method: Method, crop: int) -> Iterator[str]:
    """Yields a note if the training crops do not fit the network's maps, which then lie less exactly on the image."""
    unit, rest = method.grid
    below = (crop - rest) // unit * unit + rest
    if below != crop:
        yield f"--data.crop {crop} does not fit this network's maps exactly: {below} and {below + unit} do"


def label_notes(train_set: SegmentationDataset, val_set: SegmentationDataset, data: DataConfig) -> Iterator[str]:
    """Yields notes on suspicious labels of the splits. Raises UserError for unreadable labels or a wrong size."""
    splits = [(train_set, data.train_split), (train_set.labelled, data.labelled.split), (val_set, data.val_split)]
    for dataset, split in splits:
        if dataset is None or split is None:
            continue
        present = check(dataset, split)
        if dataset.index.labels is not None:
            note = few_classes(present, dataset.index.classes, dataset.index.labels[0].parent)
            if note:
                yield note


def trained_weights(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns the weights that training changes."""
    return [weight for weight in module.parameters() if weight.requires_grad]


def build_optimizer(method: Method, settings: TrainConfig) -> torch.optim.Optimizer:
    """Returns SGD with momentum, or AdamW, with one fused kernel for each of two groups: the weights of the backbone, and all
    other weights at `head_lr_factor` times the rate."""
    rate = settings.lr * settings.lr_factor
    backbone = trained_weights(method.network.backbone)
    in_backbone = set(backbone)
    others = [weight for weight in trained_weights(method) if weight not in in_backbone]
    groups = [{"params": backbone, "lr": rate}, {"params": others, "lr": rate * settings.head_lr_factor}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def read_grid_images(train_set: SegmentationDataset, val_set: SegmentationDataset, data: DataConfig) -> list[Shown]:
    """Returns caption, image, label and truth (None if missing) of the images in the picture grid."""
    rows = []
    for dataset, split in ((train_set, data.train_split), (val_set, data.val_split)):
        for position in spread_positions(len(dataset), PICTURES // 2):
            name = dataset.index.names[position]
            label = (
                read_label_or_none(dataset.index.labels[position]) if dataset is train_set and dataset.index.labels else None
            )
            truth = read_label_or_none(resolve_folder(Path(data.root), data.truth) / f"{name}.png")
            rows.append((f"{Path(split).stem}: {name}", dataset.read(position)[0], label, truth))
    return rows
