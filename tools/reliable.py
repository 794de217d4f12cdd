"""Ranks images by how well a trained network's features find their labels (CISC-R, step 3).

    python -m tools.reliable DATA_ROOT --checkpoint runs/cisc_r/pairs/best.pt --labelled labelled --unlabelled unlabelled \\
        --pseudo_labels runs/cisc_r/pairs/pseudo_labels --out runs/cisc_r/pairs/ranking
    torchrun --nproc_per_node 4 -m tools.reliable ...

The anchor of a class is the sum of its mean features over the labelled images. The score of an image for a class is the mean
binary cross-entropy between the similarity with the anchor and the label's map of the class: low is good. Writes
OUT/partners.json (labelled images by class, the better half of each class), OUT/reliable.txt and OUT/unreliable.txt (the
better and the worse half of the unlabelled images). Images that have their files in OUT/means and OUT/scores are skipped.
"""

import json
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from command_line import parse
from config import RunConfig
from datasets import open_index
from datasets.files import UNLABELLED, atomic_write, read_image, read_label, write_text
from datasets.index import Index, resolve_folder
from datasets.partners import shown_classes
from datasets.segmentation import read_fitting_label
from datasets.transforms import normalise, to_tensor
from engine import distributed
from engine.checkpoint import check_classes, load_model
from engine.inference import padded
from engine.provenance import file_sha256, lines_sha256, open_output_folder
from engine.run_folder import LABEL_RECORDS
from engine.shared import weights_file
from errors import UserError, run
from losses.cross_image import cosine_map, map_consistency, masked_mean
from methods.cisc_r import CISCR
from ops.resizing import upsample
from tools.splits import write_list

PATIENCE = timedelta(days=7)  # for the other processes

# Position in an index -> the image's features (1, D, h, w) float32, and its label (1, H, W) uint8, padded as the image is.
Look = Callable[[Index, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class ReliableConfig:
    """The checkpoint, the images and their labels."""

    root: str
    """the data set"""
    _: KW_ONLY
    checkpoint: str
    """checkpoint of method cisc_r, such as a run's best.pt"""
    pseudo_labels: str
    """labels of the unlabelled images: a folder of root, or a path"""
    out: str
    """folder to write"""
    labelled: str = "labelled"
    """list of labelled images: a split of the data set, or a path that ends in .txt"""
    labels: str = "SegmentationClass"
    """labels of the labelled images: a folder of root, or a path"""
    unlabelled: str = "unlabelled"
    """list of unlabelled images: a split of the data set, or a path that ends in .txt"""
    reduce: Literal["mean", "sum"] = "mean"
    """score of an unlabelled image: the mean over its classes, or the sum (as released; images of few classes come first)"""
    run: RunConfig = field(default_factory=RunConfig)


def main() -> int:
    """Runs the command line above and returns the exit code. Raises UserError for missing data or another network."""
    config = parse(ReliableConfig, __doc__, positional=True)
    method = load_model(config.checkpoint)
    if not isinstance(method, CISCR):
        raise UserError(f"{config.checkpoint}: a checkpoint of method cisc_r is needed, whose network has a feature map")
    labelled = open_index(config.root, config.labelled, config.labels)
    unlabelled = open_index(config.root, config.unlabelled, config.pseudo_labels)
    check_classes(method.classes, labelled.classes, config.checkpoint)
    if len(unlabelled) < 2:
        raise UserError(f"split {config.unlabelled} has one image: two unlabelled images at least are ranked")
    both = sorted(set(labelled.names) & set(unlabelled.names))
    if both:
        raise UserError(f"{both[0]} is in the labelled and in the unlabelled list")
    out = Path(config.out)
    open_output_folder(out / "reliable.json", conditions(config, labelled, unlabelled))

    with distributed.joined(config.run.device, PATIENCE) as process:
        precision = distributed.pick_precision(process.device, config.run.precision)
        distributed.move_to_device(method, process.device)

        def look(index: Index, position: int) -> tuple[torch.Tensor, torch.Tensor]:
            image = read_image(index.images[position])
            label = read_fitting_label(index.label_files[position], image, len(index.classes))
            images = padded(normalise(to_tensor(image)[None].to(process.device)), method.grid)
            with torch.inference_mode(), distributed.autocast(process.device, precision):
                features = method.network.feature(images).float()
            return features, padded(torch.from_numpy(label)[None].to(process.device), method.grid, UNLABELLED)

        write_means(labelled, look, out / "means")
        distributed.wait_for_all()
        anchors = torch.from_numpy(sum(np.load(out / "means" / f"{name}.npy") for name in labelled.names)).to(process.device)
        write_scores(labelled, look, anchors, out / "scores")
        write_scores(unlabelled, look, anchors, out / "scores")
        distributed.wait_for_all()
        if process.is_main:
            write_lists(config, labelled, unlabelled, out)
    return 0


def conditions(config: ReliableConfig, labelled: Index, unlabelled: Index) -> dict:
    """Returns the settings and hashes that means and scores depend on."""
    folders = {kind: resolve_folder(Path(config.root), asdict(config)[kind]) for kind in ("labels", "pseudo_labels")}
    records = {kind: [folder / name for name in LABEL_RECORDS] for kind, folder in folders.items()}
    return {
        "checkpoint_sha256": file_sha256(weights_file(config.checkpoint)),
        "labelled_sha256": lines_sha256(labelled.names),
        "unlabelled_sha256": lines_sha256(unlabelled.names),
        "label_files_sha256": lines_sha256(file_sha256(file) for file in labelled.label_files),
        **{f"{kind}_sha256": [file_sha256(file) for file in files if file.is_file()] for kind, files in records.items()},
    }


def unfinished(index: Index, folder: Path, suffix: str) -> list[int]:
    """Returns this process's positions in the index whose file is missing in `folder`."""
    mine = distributed.items_of_shard(range(len(index)), "1/1")
    return [position for position in mine if not (folder / f"{index.names[position]}{suffix}").is_file()]


def write_means(index: Index, look: Look, folder: Path) -> None:
    """Writes FOLDER/NAME.npy of each image: the mean feature of each class, (C, D) float32, 0 for a class without pixels."""
    for position in tqdm(unfinished(index, folder, ".npy"), "means", unit="image", disable=None):
        features, label = look(index, position)
        means = torch.zeros(len(index.classes), features.shape[1])
        for number in range(len(means)):
            means[number] = masked_mean(features, label == number)[0].cpu()
        with atomic_write(folder / f"{index.names[position]}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, means.numpy())


def write_scores(index: Index, look: Look, anchors: torch.Tensor, folder: Path) -> None:
    """Writes FOLDER/NAME.json of each image: {class: score} of each class in its label. anchors: (C, D) float32."""
    for position in tqdm(unfinished(index, folder, ".json"), "scores", unit="image", disable=None):
        features, label = look(index, position)
        scores = {}
        for number, name in enumerate(index.classes):
            shown = label == number
            if shown.any():
                similar = upsample(cosine_map(features, anchors[number][None]), label.shape[1:], align_corners=False)[:, 0]
                scores[name] = map_consistency(similar, shown, label).item()
        write_text(folder / f"{index.names[position]}.json", json.dumps(scores) + "\n")


def write_lists(config: ReliableConfig, labelled: Index, unlabelled: Index, out: Path) -> None:
    """Writes the three lists from OUT/scores and prints their lengths. Equal scores are ordered by name."""
    scores = {name: json.loads((out / "scores" / f"{name}.json").read_text()) for name in labelled.names + unlabelled.names}
    under: dict[str, list[str]] = {kind: [] for kind in labelled.classes}
    for position, name in enumerate(labelled.names):
        label = read_label(labelled.label_files[position])
        for number in shown_classes(label, len(labelled.classes)):
            under[labelled.classes[number]].append(name)
    partners = {}
    for kind, names in under.items():
        ranked = sorted(names, key=lambda name: (scores[name][kind], name))
        partners[kind] = ranked[: max(1, len(ranked) // 2)]

    def total(name: str) -> float:
        values = scores[name].values()
        return (np.mean if config.reduce == "mean" else np.sum)(list(values)).item() if values else np.inf

    ranked = sorted(unlabelled.names, key=lambda name: (total(name), name))
    half = len(ranked) // 2
    write_text(out / "partners.json", json.dumps(partners, indent=1) + "\n")
    write_list(out / "reliable.txt", ranked[:half])
    write_list(out / "unreliable.txt", ranked[half:])
    listed = len({name for names in partners.values() for name in names})
    print(
        f"{out}: {listed} of {len(labelled)} labelled images are partners, {half} of {len(unlabelled)} unlabelled are reliable"
    )


if __name__ == "__main__":
    run(main)
