"""Predicts images: label PNGs in the palette's colours, or pseudo-labels for the next stage.

    python predict.py --checkpoint runs/ss/best.pt --images photos/ --out predictions/
    python predict.py --checkpoint runs/ss/best.pt --images DATA_ROOT --split train --pseudo_labels --threshold 0.9 \\
        --scribbles DATA_ROOT/scribbles --out runs/ss/pseudo_labels

Beside the PNGs, predictions.json or pseudo_labels.json says from which checkpoint, threshold and command they come. OUT
appears when everything is done; if it is there from the same conditions, nothing is done again.
"""

import hashlib
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import PredictConfig, parse
from datasets import open_index
from datasets.files import UNLABELLED, read_image, read_label, write_label
from datasets.folder import images_below
from datasets.index import IMAGE_SUFFIXES, colour_map
from datasets.segmentation import check_ids
from datasets.transforms import normalise
from engine import distributed
from engine.checkpoint import fingerprint, load_model
from engine.inference import predict_probabilities
from errors import UserError, run
from methods.base import Method


def main() -> None:
    """The command line above; raises UserError for bad input, or an OUT that holds something else."""
    config = parse(PredictConfig, __doc__)
    device = distributed.pick_device(config.run.device)
    config.run.precision = distributed.pick_precision(device, config.run.precision)
    if config.scribbles is not None and not config.pseudo_labels:
        raise UserError("--scribbles goes with --pseudo_labels")
    method = load_model(config.checkpoint)
    images = find_images(Path(config.images), config.split)
    out = Path(config.out)
    record_name = "pseudo_labels.json" if config.pseudo_labels else "predictions.json"
    conditions = {
        "checkpoint": config.checkpoint,
        "checkpoint_sha256": fingerprint(config.checkpoint),
        "images": config.images,
        "count": len(images),
        "names_sha256": hashlib.sha256("\n".join(images).encode()).hexdigest(),
        "threshold": config.threshold if config.pseudo_labels else None,
        "scribbles": config.scribbles,
        "inference": json.loads(json.dumps(asdict(config.inference))),
    }
    if is_made(out, record_name, conditions):
        print(f"{out} is there already, made under the same conditions")
        return

    # Everything is written beside OUT and becomes OUT at the end: what is there is complete.
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = predict(config, method.to(device, memory_format=torch.channels_last), images, partial, device)
        shares = counts / counts.sum()
        record = conditions | {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "labelled_share": float(1 - shares[UNLABELLED]),
            "share_of_class": {name: float(shares[number]) for number, name in enumerate(method.classes)},
        }
        (partial / record_name).write_text(json.dumps(record, indent=2) + "\n")
        if out.is_dir():
            out.rmdir()  # empty, as is_made saw
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{len(images)} images, {100 * record['labelled_share']:.1f}% of pixels labelled: {out / record_name}")


def is_made(out: Path, record_name: str, conditions: dict) -> bool:
    """Whether `out` holds predictions made under `conditions`. Raises UserError where it holds anything else."""
    if not out.is_dir() or not any(out.iterdir()):
        return False
    file = out / record_name
    try:
        record = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        record = {}
    differing = [name for name, value in conditions.items() if record.get(name) != value]
    if differing:
        raise UserError(
            f"{out} holds something else already (differs in {', '.join(differing)}): delete it or choose another --out"
        )
    return True


def predict(config: PredictConfig, method: Method, images: dict[str, Path], out: Path, device: torch.device) -> np.ndarray:
    """Writes OUT/NAME.png for every image; returns how many pixels got each id, (256,) int64."""
    counts = np.zeros(256, np.int64)
    for name, path in tqdm(images.items(), "predicting", unit="image", disable=None):
        image = read_image(path)
        scribble = (
            read_scribble(Path(config.scribbles) / f"{name}.png", image, len(method.classes)) if config.scribbles else None
        )
        with torch.inference_mode(), distributed.autocast(device, config.run.precision):
            probabilities = predict_probabilities(method.predict, normalise(image).to(device), config.inference).cpu().numpy()
        label = pseudo_label(probabilities, config.threshold, scribble) if config.pseudo_labels else most_likely(probabilities)
        write_label(out / f"{name}.png", label, colour_map())
        counts += np.bincount(label.reshape(-1), minlength=256)
    return counts


def find_images(images: Path, split: str | None) -> dict[str, Path]:
    """Name -> path: of the one image, of those in the folder and below it, or of the data set's split, in order."""
    if split is not None:
        index = open_index(images, split)
        return dict(zip(index.names, index.images, strict=True))
    if images.is_file():
        return {images.stem: images}
    found = images_below(images)
    if not found:
        raise UserError(f"--images {images}: no such file, nor a folder with {', '.join(IMAGE_SUFFIXES)} images")
    return found


def read_scribble(path: Path, image: np.ndarray, num_classes: int) -> np.ndarray:
    """An image's scribbles; raises UserError where they do not fit it."""
    scribble = read_label(path)
    check_ids(scribble, num_classes, path)
    if scribble.shape != image.shape[:2]:
        raise UserError(f"{path}: {scribble.shape[1]}x{scribble.shape[0]}, but its image is {image.shape[1]}x{image.shape[0]}")
    return scribble


def most_likely(probabilities: np.ndarray) -> np.ndarray:
    """(C, H, W) probabilities -> (H, W) uint8 class ids."""
    return probabilities.argmax(axis=0).astype(np.uint8)


def pseudo_label(probabilities: np.ndarray, threshold: float, scribble: np.ndarray | None = None) -> np.ndarray:
    """The most likely class where its probability is over `threshold`, 255 elsewhere; a scribble's own label always wins.

    probabilities: (C, H, W) float. scribble: (H, W) uint8, 255 = unlabelled. Returns (H, W) uint8 (CC4S, stage 2).
    """
    label = np.where(probabilities.max(axis=0) > threshold, most_likely(probabilities), UNLABELLED).astype(np.uint8)
    return label if scribble is None else np.where(scribble != UNLABELLED, scribble, label)


if __name__ == "__main__":
    run(main)
