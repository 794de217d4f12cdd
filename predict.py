"""Predicts images. Writes label PNGs with overlays and a gallery, or pseudo-labels for the next stage.

    python predict.py --checkpoint runs/ss/best.pt --images photos/ --out predictions/
    python predict.py --checkpoint runs/ss/best.pt --images DATA_ROOT --split train --pseudo_labels --threshold 0.9 \\
        --scribbles DATA_ROOT/scribbles --out runs/ss/pseudo_labels

predictions.json or pseudo_labels.json records the checkpoint, the settings and the command. shares.json has the share of
labelled pixels by class and, if dense masks exist, the quality of the pseudo-labels. Finished images are skipped. Unreadable
images are listed at the end (exit code 1).
"""

import json
import shlex
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from command_line import parse
from config import PredictConfig
from datasets import open_index
from datasets.files import UNLABELLED, atomic_write, read_image, read_label, read_label_or_none, write_label, write_text
from datasets.folder_layout import images_below
from datasets.index import IMAGE_SUFFIXES, Index, read_lines, resolve_folder, spread_positions
from datasets.segmentation import present_ids, read_fitting_label
from engine import distributed
from engine.checkpoint import check_classes, load_model
from engine.crf import check_parameters, refine
from engine.inference import check_inference, note_preset, predict_image
from engine.metrics import SHARES, label_quality
from engine.pictures import contact_sheet, overlay, shrunk
from engine.provenance import file_sha256, lines_sha256, open_output_folder
from engine.shared import weights_file
from errors import LESS_MEMORY, UserError, out_of_memory, run
from methods.base import Method

GALLERY = 24  # most pictures in gallery.jpg
RECORDS = ("predictions.json", "pseudo_labels.json")  # without and with --pseudo_labels; each marks a folder of predictions


def main() -> int:
    """Runs the command above and returns the exit code. Raises UserError for bad input, or if OUT holds other files."""
    config = parse(PredictConfig, __doc__)
    device = distributed.pick_device(config.run.device)
    config.run.precision = distributed.pick_precision(device, config.run.precision)
    of_pseudo_labels = {
        "--threshold": config.threshold != PredictConfig.threshold,
        "--class_thresholds": config.class_thresholds,
        "--scribbles": config.scribbles,
    }
    for flag, given in of_pseudo_labels.items():
        if given and not config.pseudo_labels:
            raise UserError(f"{flag} requires --pseudo_labels")
    check_parameters(config.crf, config.crf_parameters, config.preset)
    if config.scribbles is not None and not Path(config.scribbles).is_dir():
        raise UserError(f"--scribbles {config.scribbles}: no such folder")
    method = load_model(config.checkpoint)
    check_inference(config.inference, method)
    note_preset(config.preset, method)
    index = open_index(config.images, config.split) if config.split else None
    if index and (config.pseudo_labels or config.classes == "tags"):
        check_classes(method.classes, index.classes, config.checkpoint)
    images = dict(zip(index.names, index.images, strict=True)) if index else find_images(Path(config.images), Path(config.out))
    tagged = tagged_classes(config, index)
    thresholds = class_thresholds(config, method.classes)
    out = Path(config.out)
    record = out / RECORDS[config.pseudo_labels]
    open_output_folder(
        record, conditions(config, images, tagged), {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    )

    distributed.move_to_device(method, device)
    names = distributed.items_of_shard(list(images), config.shard)
    counts = np.zeros(256, np.int64)
    failures: list[object] = []
    masks = resolve_folder(Path(config.images), config.truth) if index and config.pseudo_labels else None
    compared = np.zeros((len(method.classes), len(method.classes) + 1), np.int64)
    for name in tqdm(names, "predicting", unit="image", disable=None):
        try:
            if not (out / f"{name}.png").is_file():
                predict(method, config, name, images[name], thresholds, tagged.get(name), device)
            label = read_label(out / f"{name}.png")
            counts += np.bincount(label.reshape(-1), minlength=256)
            mask = read_label_or_none(masks / f"{name}.png") if masks else None
            if mask is not None and mask.shape == label.shape:
                compared += compare(label, mask, len(method.classes))
        except UserError as error:
            failures.append(error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            failures.append(f"{images[name]}: too little memory: predict this image to another --out with {LESS_MEMORY}")
    if not config.pseudo_labels:
        draw_gallery(images, out)
    print(
        f"{len(names) - len(failures)} images, {100 * (1 - counts[UNLABELLED] / max(counts.sum(), 1)):.1f}% labelled: {record}"
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    with distributed.joined_until_all_finish() as process:
        for counted in (counts, compared):
            distributed.sum_over_processes(torch.from_numpy(counted))
        if process.is_main and config.shard == "1/1" and counts.sum():  # not for a part of the images
            write_shares(out / SHARES, counts, compared, method.classes)
    return int(bool(failures))


def conditions(config: PredictConfig, images: dict[str, Path], tagged: dict[str, np.ndarray]) -> dict:
    """Returns the settings and hashes that the predictions depend on. tagged: the result of `tagged_classes`."""
    settings = asdict(config)
    for elsewhere in ("run", "out", "shard", "preset", "truth"):  # config.inference has the preset's settings
        del settings[elsewhere]
    if config.crf == "none":
        del settings["crf_parameters"]
    settings["checkpoint_sha256"] = file_sha256(weights_file(config.checkpoint))
    if config.classes == "scribbled" and not config.scribbles:
        del settings["classes"]
    if config.scribbles:
        files = (Path(config.scribbles) / f"{name}.png" for name in images)
        settings["scribbles_sha256"] = lines_sha256(file_sha256(file) for file in files if file.is_file())
    if tagged:
        settings["tags_sha256"] = lines_sha256(tags.tolist() for tags in tagged.values())
    if config.pseudo_labels:
        settings["count"] = len(images)
        settings["names_sha256"] = lines_sha256(images)
    else:
        del settings["threshold"], settings["class_thresholds"]
        if Path(config.images).suffix == ".txt":  # a changed list may give other pictures the same names
            settings["paths_sha256"] = lines_sha256(images.values())
    return settings


def compare(label: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns pixel counts, (C, C + 1) int64: the class in the mask is the row, the label is the column (the last: unlabelled).
    label, mask: (H, W) uint8. Pixels without a class in the mask do not count."""
    counted = mask < num_classes
    columns = np.where(label == UNLABELLED, num_classes, label)[counted].astype(np.int64)
    pairs = mask[counted].astype(np.int64) * (num_classes + 1) + columns
    return np.bincount(pairs, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def write_shares(file: Path, counts: np.ndarray, compared: np.ndarray, classes: tuple[str, ...]) -> None:
    """Writes the share of labelled pixels, in all and by class, and the agreement with the masks, as JSON.

    counts: (256,), pixels of each class id. compared: the sum of `compare` over the images, all 0 without masks.
    """
    shares = counts / counts.sum()
    found: dict[str, Any] = {
        "labelled_share": float(1 - shares[UNLABELLED]),
        "share_of_class": {name: float(shares[number]) for number, name in enumerate(classes)},
    }
    if compared.any():
        found |= label_quality(compared, classes)
        print(f"against the masks: mIoU {100 * found['miou']:.2f} (unlabelled pixels count as missed); by class in {file}")
    write_text(file, json.dumps(found, indent=2) + "\n")


def class_thresholds(config: PredictConfig, classes: tuple[str, ...]) -> np.ndarray:
    """Returns the threshold of each class, (C,) float32. Raises UserError for an unknown class name."""
    unknown = sorted(set(config.class_thresholds) - set(classes))
    if unknown:
        raise UserError(f"--class_thresholds: {unknown[0]} is not one of the classes ({', '.join(classes)})")
    return np.array([config.class_thresholds.get(name, config.threshold) for name in classes], np.float32)


def tagged_classes(config: PredictConfig, index: Index | None) -> dict[str, np.ndarray]:
    """Returns image name -> classes of its tags, (C,) bool; empty without --classes tags. Raises UserError without tags."""
    if config.classes != "tags":
        return {}
    if index is None or index.tags is None:
        raise UserError("--classes tags needs --split, and a tags.json in the data set")
    return {name: np.r_[True, tags] for name, tags in zip(index.names, index.tags, strict=True)}


def scribbled_classes(scribble: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns the classes in a scribble (H, W) uint8 as (C,) bool. Returns None for an empty scribble: it excludes no class."""
    scribbled = present_ids(scribble)[:num_classes]
    return scribbled if scribbled.any() else None


def predict(
    method: Method,
    config: PredictConfig,
    name: str,
    path: Path,
    thresholds: np.ndarray,
    tagged: np.ndarray | None,
    device: torch.device,
) -> None:
    """Predicts one image and writes its files, the label last. Raises UserError if the image or its scribble is unreadable."""
    out = Path(config.out)
    image = read_image(path)
    scribble = (
        read_fitting_label(Path(config.scribbles) / f"{name}.png", image, len(method.classes)) if config.scribbles else None
    )
    allowed = tagged
    if scribble is not None and config.classes == "scribbled":
        allowed = scribbled_classes(scribble, len(method.classes))
    if image[..., 0].size > method.large_image and not (config.inference.window or config.inference.long_side):
        tqdm.write(
            f"note: {path} goes through the network whole and may take very long; --inference.window 465 or "
            "--inference.long_side 512 is faster",
            file=sys.stderr,
        )
    with torch.inference_mode():
        with distributed.autocast(device, config.run.precision):
            probabilities = predict_image(method, image, config.inference, device, allowed)
        if config.crf != "none":
            probabilities = refine(probabilities, image, config.crf, config.crf_parameters)
    certainty, label = (maximum.cpu().numpy() for maximum in probabilities.max(dim=0))
    label = label.astype(np.uint8)
    if config.pseudo_labels:
        label = pseudo_label(label, certainty, thresholds, scribble)
    if config.probabilities:
        with atomic_write(out / "probabilities" / f"{name}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, probabilities=probabilities.half().cpu().numpy())
    if not config.pseudo_labels:
        with atomic_write(out / "overlays" / f"{name}.jpg") as temporary:
            Image.fromarray(overlay(image, label)).save(temporary, "JPEG", quality=90)
    write_label(out / f"{name}.png", label)


def draw_gallery(images: dict[str, Path], out: Path) -> None:
    """Writes OUT/gallery.jpg with overlays spread evenly over the finished images."""
    done = [path for name in images if (path := out / "overlays" / f"{name}.jpg").is_file()]
    if done:
        tiles = [shrunk(read_image(done[number])) for number in spread_positions(len(done), GALLERY)]
        with atomic_write(out / "gallery.jpg") as temporary:
            contact_sheet(tiles).save(temporary, "JPEG", quality=90)


def find_images(images: Path, out: Path) -> dict[str, Path]:
    """Returns name -> path of one image, of the images in a text file (one path per line, relative to the file's folder), or of
    all images below a folder but not in `out` or in earlier predictions. Raises UserError if there is no image, or if two
    images have the same name."""
    if images.suffix == ".txt" and images.is_file():
        listed = [images.parent / line for line in read_lines(images)]
        if not listed:
            raise UserError(f"--images {images}: the list is empty: write one path per line")
        found: dict[str, Path] = {}
        for path in listed:
            if path.stem in found:
                raise UserError(f"--images {images}: {found[path.stem]} and {path} would get the same name: rename one")
            found[path.stem] = path
        return found
    if images.is_file() and images.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"--images {images}: neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a list of images, NAME.txt")
    if images.is_file():
        return {images.stem: images}
    made = [out.resolve(), *(file.resolve().parent for record in RECORDS for file in images.rglob(record))]

    def is_made(path: Path) -> bool:
        return any(path.resolve().is_relative_to(folder) for folder in made)

    found = {name: path for name, path in images_below(images).items() if not is_made(path)}
    if not found:
        raise UserError(f"--images {images}: no such file, and no folder with {', '.join(IMAGE_SUFFIXES)} images")
    others = Counter(
        path.suffix.lower() or path.name
        for path in images.rglob("*")
        if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES and not is_made(path)
    )
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        print(f"note: --images {images}: files that are not images were skipped ({kinds})", file=sys.stderr)
    return found


def pseudo_label(label: np.ndarray, certainty: np.ndarray, thresholds: np.ndarray, scribble: np.ndarray | None) -> np.ndarray:
    """Returns pseudo-labels (CC4S, stage 2): the most likely class where its probability is over its threshold, 255 elsewhere.
    The scribble replaces the pseudo-label where the scribble is not 255.

    label: (H, W) uint8, the most likely classes. certainty: (H, W) float, their probabilities. thresholds: (C,) float.
    scribble: (H, W) uint8, 255 = unlabelled. Returns (H, W) uint8.
    """
    label = np.where(certainty > thresholds[label], label, UNLABELLED).astype(np.uint8)
    return label if scribble is None else np.where(scribble != UNLABELLED, scribble, label)


if __name__ == "__main__":
    run(main)
