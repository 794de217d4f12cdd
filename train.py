"""Trains one stage: builds the run, trains, validates and saves.

    python train.py --config configs/cc4s/ur.yaml --data.root DIR --data.labels scribbles --out runs/ur
    torchrun --nproc_per_node 4 train.py --config ...

Writes OUT/config.yaml, run.json, last.pt, best.pt (by mIoU on the validation split), metrics.jsonl, pictures.png,
inside.png (of some methods), report.html and TensorBoard events. The next stage takes --init OUT/best.pt. If a run is
interrupted, the same command resumes from OUT/last.pt and ends with the same weights (on a GPU with --deterministic).
"""

import contextlib
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from command_line import parse
from config import Config, InferenceConfig, TrainConfig
from datasets.batch import Batch, to_device
from engine import distributed
from engine.checkpoint import save_checkpoint
from engine.inference import most_likely, predict_image, predict_split
from engine.inspection import draw_inside, look_inside
from engine.interrupt import StopRequest
from engine.loading import Loaders
from engine.metrics import ConfusionMatrix
from engine.nonfinite import all_finite, require_finite_weights
from engine.pictures import picture_grid
from engine.preparation import Run, prepare
from engine.report import training_report
from errors import run as run_main
from methods import SETTINGS
from methods.base import Method


def main() -> int:
    """Runs the command above and returns the exit code. Raises UserError for a wrong command, Failure for an error later."""
    config = parse(Config, __doc__, methods=SETTINGS)
    with distributed.joined(config.train.device) as process:
        config.train.precision = distributed.pick_precision(process.device, config.train.precision)
        return train(config, process)


def train(config: Config, process: distributed.Process) -> int:
    """Runs the stage of `config` on this process, from the start or from OUT/last.pt. Returns the exit code: 0, or 128 plus the
    number of the signal that stopped the run."""
    run = prepare(config, process)
    settings, progress, log = config.train, run.progress, run.log
    stop = 0  # number of the signal that asks to stop, or 0
    with StopRequest() as request, contextlib.closing(log) if log else contextlib.nullcontext(), run.loaders.explain_failures():
        if not progress.validated:  # the run stopped between a step and its validation
            validate_and_keep(run)
        for step in range(progress.step, run.steps):
            losses = take_step(run, step)
            rate = float(run.schedule.get_last_lr()[0])
            run.schedule.step()

            done = progress.step = step + 1
            to_log = done % settings.log_every == 0 or done == run.steps
            to_validate = done % run.validate_every == 0 or done == run.steps
            to_inspect = done % settings.inspect_steps == 0 if settings.inspect_steps else to_validate
            stop = distributed.max_over_processes(request.signal or 0)
            if to_log or to_validate or stop:  # at other steps the losses stay on the device: no waiting
                run.finite.check()
            if to_validate or stop:
                require_finite_weights(run.method, done)
            if to_log:
                log_losses(run, rate, losses)
            if to_inspect:
                write_inspection(run)
            if log:
                log.bar.update()
            progress.validated = not to_validate
            if to_validate and not stop:
                validate_and_keep(run)
                stop = distributed.max_over_processes(request.signal or 0)
            elif stop and log:
                save(run)
            if stop:
                break
    if log and not stop:
        print(f"best val mIoU {100 * progress.best:.2f}: {run.out / 'best.pt'}")
    elif log:
        command = "the same command without --fresh" if config.fresh else "the same command"
        print(f"stopped by {signal.Signals(stop).name}: rerun {command} to resume", file=sys.stderr)
    return 128 + stop if stop else 0


def take_step(run: Run, step: int) -> dict[str, torch.Tensor]:
    """Takes one optimizer step and returns its loss terms. With `skip_nonfinite`, a non-finite step changes no weight."""
    method = run.method
    # The seed, the step and the rank decide all random numbers of a step, so a resumed run needs no random state.
    seed_everything(run.config.train.seed, step, run.process.rank)
    method.train()
    method.begin_step(step, run.epoch(step))
    buffers = [buffer.clone() for buffer in method.buffers()] if run.config.skip_nonfinite else []
    losses = forward_backward(run.model, run.batches, run.config.train, run.scaler, run.process.device)
    if run.config.skip_nonfinite and distributed.max_over_processes(int(not all_finite(losses))):
        run.progress.skipped += 1
        if run.progress.skipped > run.config.skip_nonfinite:
            run.finite.fail(step, losses)
        for buffer, before in zip(method.buffers(), buffers, strict=True):
            buffer.copy_(before)
    else:
        run.finite.add(step, losses)
        run.scaler.step(run.optimizer)
        scale = run.scaler.get_scale()
        run.scaler.update()
        if run.scaler.get_scale() >= scale:  # the scaler skips a step with infinite gradients, and lowers the scale
            method.after_step()
    run.optimizer.zero_grad(set_to_none=True)
    return losses


def forward_backward(
    model: torch.nn.Module,
    batches: Iterator[Batch],
    settings: TrainConfig,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """Returns the losses of a step by name, as means over its parts, and adds their gradients to the weights."""
    losses: dict[str, torch.Tensor] = {}
    for part in range(settings.accumulate):
        batch = to_device(next(batches), device)
        last = part == settings.accumulate - 1
        with contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with distributed.autocast(device, settings.precision):
                terms = model(batch)
                loss = sum(terms.values()) / settings.accumulate
            scaler.scale(loss).backward()
        for name, term in terms.items():
            losses[name] = losses.get(name, 0) + term.detach() / settings.accumulate
    return losses


def log_losses(run: Run, rate: float, losses: dict[str, torch.Tensor]) -> None:
    """Logs the loss terms, as means over the processes."""
    means = distributed.mean_over_processes(torch.stack(list(losses.values()))).tolist()
    if run.log:
        step = run.progress.step
        run.log.losses(step, run.epoch(step), rate, dict(zip(losses, means, strict=True)))


def write_inspection(run: Run) -> None:
    """Looks inside the run and logs the figures and the pictures."""
    seed_everything(run.config.train.seed, 0, run.process.rank)  # every look repeats the first step
    figures = look_inside(run.method, run.inspected, run.process, run.config.train.precision, run.scaler.get_scale())
    if run.log:
        step = run.progress.step
        run.log.figures(step, run.epoch(step), figures)
        grid = draw_inside(run.method, run.inspected, run.process.device, run.config.train.precision)
        if grid:
            run.log.pictures(step, grid, "inside")


def validate_and_keep(run: Run) -> None:
    """Validates. The main process logs the scores and writes best.pt, the pictures, the report and last.pt."""
    log, progress, step = run.log, run.progress, run.progress.step
    distributed.share_buffers(run.method)
    if log:
        save(run)  # the run may be killed during a long validation
    scores = validate(run.method, run.loaders, run.classes, run.config.train.precision, run.process)
    progress.validated = True
    if not log:
        return
    log.scores(step, run.epoch(step), scores)
    # The mIoU of a split without labelled pixels is NaN. `not <=` then keeps the newest weights.
    if not scores["miou"] <= progress.best:
        progress.best = scores["miou"]
        save_checkpoint(run.out / "best.pt", run.method, run.config, run.classes, step=step, scores=scores)
    with distributed.autocast(run.process.device, run.config.train.precision):
        log.pictures(step, draw_shown(run.method, run.shown, run.process.device))
    training_report(run.out)
    save(run)


def save(run: Run) -> None:
    """Writes last.pt, with everything that a resumed run needs. Only the main process calls this."""
    if run.log:
        run.log.flush()
    state = {name: part.state_dict() for name, part in run.stateful.items()} | asdict(run.progress)
    save_checkpoint(run.out / "last.pt", run.method, run.config, run.classes, **state)


def seed_everything(seed: int, step: int, rank: int) -> None:
    """Seeds the random numbers of a step: numpy and torch (all devices) by seed, step and rank; python by seed and step alone.
    Python draws the view, and all processes must draw the same view."""
    random.seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))
    own = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    np.random.seed(own)
    torch.manual_seed(own)


@torch.inference_mode()
def validate(method: Method, loaders: Loaders, classes: tuple[str, ...], precision: str, process: distributed.Process) -> dict:
    """Returns `ConfusionMatrix.scores` of the whole validation split at one scale. Each process predicts its share."""
    method.eval()
    matrix = ConfusionMatrix(len(classes))
    positions, images = loaders.validation()
    predicted = predict_split(method, images, positions, InferenceConfig(), process.device, precision)
    for _, item, probabilities in predicted:
        matrix.update(most_likely(probabilities), item["label"].to(process.device))
    distributed.sum_over_processes(matrix.counts)
    return matrix.scores(classes)


@torch.inference_mode()
def draw_shown(method: Method, shown: list[tuple], device: torch.device) -> Image.Image:
    """Returns the picture grid with the columns image, label, prediction and truth."""
    rows = []
    for _, image, label, truth in shown:
        probabilities = predict_image(method, image, InferenceConfig(), device)
        prediction = most_likely(probabilities).byte().cpu().numpy()
        rows.append([image, label, prediction, truth])
    return picture_grid(rows, ["image", "label", "prediction", "truth"], [caption for caption, *_ in shown])


if __name__ == "__main__":
    run_main(main)
