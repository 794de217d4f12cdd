"""Scores a checkpoint on a split: per-class IoU and Dice, mIoU, pixel accuracy, boundary IoU.

    python evaluate.py --checkpoint runs/ur/best.pt --data.root DIR --data.split val --preset cc4s --out runs/ur/evaluation

    torchrun --nproc_per_node 4 evaluate.py --checkpoint ...

Prints a table. Writes OUT/metrics.json (scores as fractions of 1, the confusion matrix, the conditions) and OUT/report.html
(scores by class, the best and the worst images, errors, entropy). --save_masks DIR also writes the predicted masks.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from command_line import parse
from config import EvaluateConfig
from datasets import open_index
from datasets.check import check
from datasets.drawing.demo import draw_if_missing
from datasets.files import read_label_or_none, write_label, write_text
from datasets.index import resolve_folder, spread_positions
from datasets.segmentation import SegmentationDataset
from engine import distributed
from engine.checkpoint import check_classes, load_model
from engine.crf import check_parameters, library_version, refine
from engine.inference import check_inference, most_likely, note_preset, predict_split
from engine.loading import TrackedDataset, explain_failures, split_images
from engine.metrics import METRICS, BoundaryScores, ConfusionMatrix, normalised_entropy, read_evaluation, table
from engine.pictures import shrunk
from engine.provenance import circumstances, file_sha256
from engine.report import Shown, evaluation_report
from engine.shared import weights_file
from engine.volumes import Volumes
from engine.volumes import table as volume_table
from errors import UserError, extra, run
from methods.base import Method

PICTURES = 4  # images in a section of the report
SAVED = "saved_masks.json"  # marks a folder of --save_masks
LOADER_TIMEOUT = 300  # seconds to wait for an image


def main() -> None:
    """Runs the command above. Raises UserError for a checkpoint with other classes, or for data that cannot be scored."""
    config = parse(EvaluateConfig, __doc__)
    with distributed.joined(config.run.device) as process:
        config.run.precision = distributed.pick_precision(process.device, config.run.precision)
        evaluate(config, process)


def evaluate(config: EvaluateConfig, process: distributed.Process) -> None:
    """Scores the checkpoint on this process's share of the split. The main process prints and writes the scores of all."""
    compared = None
    if config.compare is not None:
        compared = evaluation_name(Path(config.compare)), read_evaluation(Path(config.compare))
    if config.crf_per_scale and config.crf == "none":
        raise UserError("--crf_per_scale requires --crf torch or --crf pydensecrf")
    if config.crf_per_scale and config.inference.average == "logits":
        raise UserError("--crf_per_scale cannot refine logits: give --inference.average probabilities")
    check_parameters(config.crf, config.crf_parameters, config.preset)
    if config.spacing is not None and config.volumes is None:
        raise UserError("--spacing requires --volumes")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    if (out / "last.pt").exists():  # the evaluation would overwrite report.html of the run
        raise UserError(f"{out} is a training run: choose another --out (OUT of evaluate.sh), such as {out / 'evaluation'}")
    if config.save_masks is not None:
        masks = Path(config.save_masks)
        if masks.is_dir() and any(masks.iterdir()) and not (masks / SAVED).is_file():
            raise UserError(f"--save_masks {masks} holds other files: choose another folder")
    method = load_model(config.checkpoint)
    check_inference(config.inference, method)
    if process.is_main:
        note_preset(config.preset, method)
        draw_if_missing(config.data.root)
    distributed.wait_for_all()
    if config.save_masks is not None and process.is_main:
        write_text(Path(config.save_masks) / SAVED, json.dumps({"checkpoint": config.checkpoint}) + "\n")
    index = open_index(config.data.root, config.data.split, config.data.labels)
    check_classes(method.classes, index.classes, config.checkpoint)
    dataset = SegmentationDataset(index)
    volumes = Volumes(config.volumes, index.names) if config.volumes is not None else None
    if volumes:
        extra("medpy.metric.binary")  # errors before the work, not after it
        volumes.check_sizes(dict(zip(index.names, index.label_files, strict=True)))
        spacing = volumes.spacing(Path(config.data.root), config.spacing)
    if process.is_main:
        check(dataset, config.data.split)
    distributed.wait_for_all()

    scored_under = conditions(config, len(index), process)  # now, since a training may replace the checkpoint
    distributed.move_to_device(method, process.device)
    matrix, boundaries, shown = score(method, dataset, config, process, volumes)
    if not process.is_main:
        return
    if not matrix.counts.sum():
        raise UserError(f"{config.data.labels}: no labelled pixel in split {config.data.split}: choose other --data.labels")
    scores = matrix.scores(index.classes) | boundaries.scores(index.classes)
    print(table(scores))
    if volumes:
        scores["volumes"] = volumes.scores(index.classes, spacing) | {"unit": "mm" if spacing else "pixels"}
        print(volume_table(scores["volumes"]))
    out.mkdir(parents=True, exist_ok=True)
    record = scores | {"confusion_matrix": matrix.counts.tolist(), "conditions": scored_under}
    write_text(out / METRICS, json.dumps(record, indent=2) + "\n")
    evaluation_report(out, record, shown, compared)
    print(f"wrote {out / METRICS} and {out / 'report.html'}")


@torch.inference_mode()
def score(
    method: Method,
    dataset: SegmentationDataset,
    config: EvaluateConfig,
    process: distributed.Process,
    volumes: Volumes | None = None,
) -> tuple[ConfusionMatrix, BoundaryScores, dict[str, list[Shown]]]:
    """Returns the counts over the whole split, summed over the processes, and its best, its worst and some other images. Only
    the main process gets the images. `volumes` get all slices on the main process."""
    matrix, boundaries = ConfusionMatrix(len(dataset.index.classes)), BoundaryScores(len(dataset.index.classes))
    spread = spread_positions(len(dataset), PICTURES)
    best: list[Shown] = []
    worst: list[Shown] = []
    others: list[Shown] = []
    watched = TrackedDataset(dataset, config.workers)
    share, images = split_images(watched, process, config.workers, LOADER_TIMEOUT)

    def sharpen(probabilities: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return refine(probabilities, image.permute(1, 2, 0).cpu().numpy(), config.crf, config.crf_parameters)

    with explain_failures([watched], LOADER_TIMEOUT):
        predicted = predict_split(
            method,
            images,
            share,
            config.inference,
            process.device,
            config.run.precision,
            sharpen if config.crf_per_scale else None,
        )
        bar = tqdm(predicted, config.data.split, len(share), False, unit="image", disable=None if process.is_main else True)
        for position, item, probabilities in bar:
            if config.crf != "none" and not config.crf_per_scale:
                probabilities = sharpen(probabilities, item["image"])
            prediction = most_likely(probabilities).cpu()
            if config.save_masks is not None:
                write_label(Path(config.save_masks) / f"{dataset.index.names[position]}.png", prediction.byte().numpy())
            own = ConfusionMatrix(len(dataset.index.classes))
            own.update(prediction, item["label"])
            matrix.counts += own.counts
            boundaries.update(prediction, item["label"])
            if volumes:
                volumes.update(dataset.index.names[position], prediction.numpy(), item["label"].numpy())
            miou = own.scores(dataset.index.classes)["miou"]
            if math.isnan(miou):  # no labelled pixel
                continue
            is_worst = len(worst) < PICTURES or miou < worst[-1].miou
            is_best = len(best) < PICTURES or miou > best[-1].miou
            if is_worst or is_best or position in spread:
                shown = show(config, dataset, position, miou, item, probabilities, prediction)
                if is_worst:
                    worst = sorted([*worst, shown], key=lambda one: one.miou)[:PICTURES]
                if is_best:
                    best = sorted([*best, shown], key=lambda one: -one.miou)[:PICTURES]
                if position in spread:
                    others.append(shown)
    for counted in (matrix, boundaries):
        distributed.sum_over_processes(counted.counts)
    if volumes:
        for part in distributed.gathered(volumes.slices):
            volumes.slices |= part
    worst, best, others = ([one for part in distributed.gathered(shown) for one in part] for shown in (worst, best, others))
    worst.sort(key=lambda one: (one.miou, one.name))
    best.sort(key=lambda one: (-one.miou, one.name))
    others.sort(key=lambda one: one.name)
    return matrix, boundaries, {"Worst images": worst[:PICTURES], "Best images": best[:PICTURES], "Others": others}


def show(
    config: EvaluateConfig,
    dataset: SegmentationDataset,
    position: int,
    miou: float,
    item: dict[str, torch.Tensor],
    probabilities: torch.Tensor,
    prediction: torch.Tensor,
) -> Shown:
    """Returns the image, maps and entropy of an item, reduced to the size in the report."""
    name = dataset.index.names[position]
    scribbles = read_label_or_none(resolve_folder(Path(config.data.root), config.scribbles) / f"{name}.png")
    return Shown(
        name=name,
        miou=miou,
        image=shrunk(item["image"].permute(1, 2, 0).numpy()),
        scribbles=None if scribbles is None else shrunk(scribbles),
        prediction=shrunk(prediction.byte().numpy()),
        truth=shrunk(item["label"].byte().numpy()),
        entropy=shrunk(normalised_entropy(probabilities).cpu().numpy()),
    )


def evaluation_name(folder: Path) -> str:
    """Returns the name of an evaluation: the run's name for RUN/evaluation, else the name of the folder."""
    return folder.parent.name if folder.name == "evaluation" else folder.name


def conditions(config: EvaluateConfig, images: int, process: distributed.Process) -> dict:
    """Returns what the scores depend on: settings, checkpoint hash, command, commit, library versions, device."""
    found = {
        "images": images,
        "checkpoint_sha256": file_sha256(weights_file(config.checkpoint)),
        "device": str(process.device),
        "processes": process.world,
        **circumstances(),
        **asdict(config),
    }
    if config.crf == "none":
        del found["crf_parameters"]
    if config.crf == "pydensecrf":
        found["versions"]["pydensecrf"] = library_version()
    return found


if __name__ == "__main__":
    run(main)
