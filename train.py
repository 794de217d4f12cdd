"""Trains one stage: build -> loop -> validate -> save.

    python train.py --config configs/cc4s/ur.yaml --data.root DIR --data.labels scribbles --out runs/ur
    torchrun --nproc_per_node 4 train.py --config ...

Writes OUT/config.yaml, run.json, last.pt, best.pt (by mIoU on the validation split), metrics.jsonl, pictures.png,
report.html and TensorBoard events. The next stage takes --init OUT/best.pt. If a run is interrupted, the same command
resumes from OUT/last.pt and ends with the same weights.
"""

import contextlib
import math
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from command_line import parse
from config import Config, DataConfig, InferenceConfig, TrainConfig
from datasets import open_index
from datasets.check import check, few_classes, list_problems
from datasets.drawing.demo import draw_if_missing
from datasets.files import shown_label
from datasets.index import Index, evenly, resolve_folder
from datasets.segmentation import SegmentationDataset, Superpixels, to_device
from engine import distributed
from engine.checkpoint import load_weights, read_checkpoint, save_checkpoint
from engine.inference import most_likely, predict_image, predict_split
from engine.inspection import first_batch, look_inside
from engine.interrupt import StopRequest
from engine.loading import Loaders, augmentation, check_batch, training_order
from engine.metrics import ConfusionMatrix, read_label_quality
from engine.pictures import picture_grid
from engine.report import training_report
from engine.run_folder import Log, origin, read_unfinished, start
from errors import Failure, UserError, run
from methods import SETTINGS, build_method
from methods.base import Method
from models.resnet import load_backbone

PICTURES = 6  # rows of the picture grid, half of them training images


def main() -> int:
    """The command line above; returns the exit code. Raises UserError for what is wrong with it, Failure for what goes wrong on
    the way."""
    config = parse(Config, __doc__, methods=SETTINGS)
    with distributed.joined(config.train.device) as process:
        config.train.precision = distributed.pick_precision(process.device, config.train.precision)
        return train(config, process)


def train(config: Config, process: distributed.Process) -> int:
    """Runs the stage that `config` describes on this process, from the start or from where OUT's run stopped. Returns the exit
    code: 128 and a signal's number where one ended it."""
    settings, device = config.train, process.device
    out = Path(config.out)
    restarted = distributed.max_over_processes(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")) > 0
    unfinished = read_unfinished(config, restarted)
    first, best = (unfinished["step"], unfinished["best"]) if unfinished else (0, -math.inf)

    if config.deterministic:
        be_deterministic()
    torch.manual_seed(settings.seed)
    train_index, val_index = open_splits(config.data, process)
    classes = train_index.classes
    method = build_method(config.method, config.model, len(classes))
    check_batch(settings, process, method.fewest_images)
    steps = settings.steps or math.ceil(settings.epochs * len(train_index) / settings.batch_size)
    method.check_settings(config, steps)

    def epoch_of(step: int) -> float:
        return step * settings.batch_size / len(train_index)

    superpixels = find_superpixels(config.data, method, train_index.names, process)
    train_set = SegmentationDataset(train_index, augmentation(config.data), superpixels, settings.seed)
    val_set = SegmentationDataset(val_index)
    if unfinished:
        load_weights(method, unfinished, out / "last.pt", classes)
    elif config.init is not None:
        load_weights(method, read_checkpoint(config.init), config.init, classes)
    else:
        load_backbone(method.network.backbone, config.model.backbone, config.model.weights)
    if process.is_main:
        for note in chain(list_problems(train_index, val_index), odd_labels(train_set, val_set, config.data)):
            print(f"note: {note}")
        shown = read_shown(train_set, val_set, config.data)
        label_figures = read_label_quality(resolve_folder(Path(config.data.root), config.data.labels))
        start(config, origin(config, train_set, val_set), process.world, str(device), first)
        weights = sum(weight.numel() for weight in method.parameters())
        print(
            f"{len(train_set)} train and {len(val_set)} val images, {len(classes)} classes, {weights / 1e6:.1f}M weights; "
            + (f"resuming after step {first} of " if first else "")
            + f"{steps} steps ({epoch_of(steps):.1f} epochs) on {process.world} x {device.type} in {settings.precision}"
        )
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
    val_every = settings.val_steps or max(1, round(settings.val_epochs * len(train_set) / settings.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** settings.poly_power)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    stateful = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    skipped, validated = 0, True
    if unfinished:
        skipped, validated = unfinished["skipped"], unfinished["validated"]
        for name, part in stateful.items():
            part.load_state_dict(unfinished[name])
    del unfinished  # its weights and momentum
    loaders = Loaders(train_set, val_set, settings, process)
    batches = loaders.training(steps, first)
    inspected = first_batch(train_set, resolve_folder(Path(config.data.root), config.data.truth), settings, process)
    log = Log(out, steps, first, validated) if process.is_main else None
    if log and not first and label_figures:
        log.figures(0, 0.0, label_figures)

    def save(step: int, validated: bool) -> None:
        """Writes last.pt; `validated`: whether the validation that is due at this step is done."""
        log.flush()
        state = {name: part.state_dict() for name, part in stateful.items()}
        state |= {"step": step, "best": best, "skipped": skipped, "validated": validated}
        save_checkpoint(out / "last.pt", method, config, classes, **state)

    def review(step: int) -> None:
        """Validates; the main process writes down the scores, best.pt, the pictures and last.pt."""
        nonlocal best
        if log:
            save(step, validated=False)  # a validation may take longer than what stops the run will wait
        scores = validate(method, loaders, classes, settings.precision, process)
        if not log:
            return
        log.scores(step, epoch_of(step), scores)
        # A split without one labelled pixel has no mIoU: the newest is kept then.
        if not scores["miou"] <= best:
            best = scores["miou"]
            save_checkpoint(out / "best.pt", method, config, classes, step=step, scores=scores)
        with distributed.autocast(device, settings.precision):
            log.pictures(step, draw_shown(method, shown, device))
        training_report(out)
        save(step, validated=True)

    stop = 0  # the signal that asks for it
    recent = []  # (step, its loss terms) since they were last looked at
    with StopRequest() as request, contextlib.closing(log) if log else contextlib.nullcontext(), loaders.explain_failures():
        if not validated:  # it stopped between a step and its validation
            review(first)
        for step in range(first, steps):
            # All that is random in a step depends on its number, so a run that resumes needs no other state.
            seed_everything(settings.seed, step, process.rank)
            method.train()
            method.begin_step(step, epoch_of(step))
            buffers = [buffer.clone() for buffer in method.buffers()] if config.skip_nonfinite else []
            losses = forward_backward(model, batches, settings, scaler, device)
            values = torch.stack(list(losses.values()))
            if config.skip_nonfinite and distributed.max_over_processes(int(not values.isfinite().all())):
                skipped += 1
                if skipped > config.skip_nonfinite:
                    raise_if_nonfinite([(step, values)], list(losses), train_set, settings, process)
                for buffer, before in zip(method.buffers(), buffers, strict=True):
                    buffer.copy_(before)
            else:
                recent.append((step, values))
                scaler.step(optimizer)
                scaler.update()
                method.after_step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            to_log = done % settings.log_every == 0 or done == steps
            to_validate = done % val_every == 0 or done == steps
            stop = distributed.max_over_processes(request.signal or 0)
            if to_log or to_validate or stop:  # elsewhere the losses stay on the device, and nothing waits for them
                raise_if_nonfinite(recent, list(losses), train_set, settings, process)
                recent.clear()
            if to_validate or stop:
                raise_if_broken(method, done)
            if to_log:
                means = distributed.mean_over_processes(values).tolist()
                if log:
                    log.losses(done, epoch_of(done), rate, dict(zip(losses, means, strict=True)))
            if done % settings.inspect_steps == 0 if settings.inspect_steps else to_validate:
                seed_everything(settings.seed, process.rank)
                figures = look_inside(method, inspected, process, settings.precision, scaler.get_scale())
                if log:
                    log.figures(done, epoch_of(done), figures)
            if log:
                log.bar.update()
            if to_validate and not stop:
                review(done)
                stop = distributed.max_over_processes(request.signal or 0)
            elif stop and log:
                save(done, validated=not to_validate)
            if stop:
                break
    if log and not stop:
        print(f"best val mIoU {100 * best:.2f}: {out / 'best.pt'}")
    elif log:
        command = "the same command without --fresh" if config.fresh else "the same command"
        print(f"stopped by {signal.Signals(stop).name}: rerun {command} to resume", file=sys.stderr)
    return 128 + stop if stop else 0


def forward_backward(
    model: torch.nn.Module,
    batches: Iterator[dict[str, torch.Tensor]],
    settings: TrainConfig,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """The losses of a step by name, the mean over its parts, with their gradients in the weights."""
    losses: dict[str, torch.Tensor] = {}
    for part in range(settings.accumulate):
        batch = to_device(next(batches), device)
        waits = part < settings.accumulate - 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else contextlib.nullcontext():
            with distributed.autocast(device, settings.precision):
                terms = model(batch)
                loss = sum(terms.values()) / settings.accumulate
            scaler.scale(loss).backward()
        for name, term in terms.items():
            losses[name] = losses.get(name, 0) + term.detach() / settings.accumulate
    return losses


def raise_if_nonfinite(
    recent: list[tuple[int, torch.Tensor]],
    names: list[str],
    train_set: SegmentationDataset,
    settings: TrainConfig,
    process: distributed.Process,
) -> None:
    """Raises Failure if a loss of these steps is not finite, with the step, the loss terms and the images."""
    for step, values in recent:
        if not values.isfinite().all():
            terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values.tolist(), strict=True))
            order = training_order(len(train_set), settings, step + 1, step, process)
            images = ", ".join(train_set.index.names[position] for batch in order for _, position in batch)
            raise Failure(
                f"the loss is not finite at step {step + 1} ({terms}; images {images}); the last checkpoint is from before: "
                "leave out some steps by --skip-nonfinite, or start again, --fresh, with a lower --train.lr or another "
                "--train.precision"
            )


def raise_if_broken(method: Method, step: int) -> None:
    """Raises Failure if a weight is not finite, before it is saved: a finite loss may have had another gradient."""
    if not torch.stack([weight.isfinite().all() for weight in method.parameters()]).all():
        raise Failure(
            f"the weights are not finite after step {step}; the last checkpoint is from before: start again, --fresh, with a "
            "lower --train.lr or another --train.precision"
        )


def seed_everything(*numbers: int) -> None:
    """Seeds python, numpy and torch, on every device, by a few non-negative numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def be_deterministic() -> None:
    """Makes torch choose reproducible algorithms, and raise where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it before its first call
    torch.use_deterministic_algorithms(True)


def compile_backbone(method: Method) -> None:
    """Has torch.compile make the backbone's kernels at its first pass; where it cannot, the backbone runs as it is."""
    torch._dynamo.config.suppress_errors = True
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


@torch.inference_mode()
def validate(method: Method, loaders: Loaders, classes: tuple[str, ...], precision: str, process: distributed.Process) -> dict:
    """Scores on the whole split at one scale, as `ConfusionMatrix.scores` gives them; each process takes its share."""
    method.eval()
    matrix = ConfusionMatrix(len(classes))
    positions, images = loaders.validation()
    predicted = predict_split(method.predict, images, positions, InferenceConfig(), process.device, precision)
    for _, item, probabilities in predicted:
        matrix.update(most_likely(probabilities), item["label"].to(process.device))
    distributed.sum_over_processes(matrix.counts)
    return matrix.scores(classes)


def read_shown(
    train_set: SegmentationDataset, val_set: SegmentationDataset, data: DataConfig
) -> list[tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """Caption, image, label and truth (None where there is none) of the training and validation images in the picture grid."""
    rows = []
    for dataset, split in ((train_set, data.train_split), (val_set, data.val_split)):
        for position in evenly(len(dataset), PICTURES // 2):
            name = dataset.index.names[position]
            files = (resolve_folder(Path(data.root), folder) / f"{name}.png" for folder in (data.labels, data.truth))
            label, truth = map(shown_label, files)
            rows.append((f"{split}: {name}", dataset.read(position)[0], label, truth))
    return rows


@torch.inference_mode()
def draw_shown(method: Method, shown: list[tuple], device: torch.device) -> Image.Image:
    """The picture grid: image, label, prediction, truth."""
    rows = []
    for _, image, label, truth in shown:
        probabilities = predict_image(method.predict, image, InferenceConfig(), device)
        prediction = most_likely(probabilities).byte().cpu().numpy()
        rows.append([image, label, prediction, truth])
    return picture_grid(rows, ["image", "label", "prediction", "truth"], [caption for caption, *_ in shown])


if __name__ == "__main__":
    run(main)
