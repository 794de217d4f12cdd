"""Compares runs: a table of their evaluations and a picture of their predictions.

    python -m tools.compare runs/quickstart

Compares every run in the folder that has RUN/best.pt and RUN/evaluation/metrics.json (from evaluate.sh), oldest first.

    python -m tools.compare runs/one_hour --cost configs/cost/voc.yaml

adds the hours of annotation that the labels of each run cost, and draws FOLDER/cost.png, the scores over the hours.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from command_line import parse
from config import InferenceConfig, SplitConfig
from datasets import open_index
from datasets.files import atomic_write, read_label_or_none
from datasets.index import resolve_folder, spread_positions
from datasets.segmentation import SegmentationDataset
from engine.annotation import CostConfig, draw_costs, hours_of
from engine.checkpoint import check_classes, load_model
from engine.inference import most_likely, predict_image
from engine.metrics import MEANS, METRICS, read_evaluation
from engine.pictures import picture_grid
from engine.provenance import file_sha256
from errors import UserError, run
from methods.base import Method

EVALUATION = "evaluation"  # the folder in a run that evaluate.sh writes
# Scores can be compared only if these settings are equal.
COMPARABLE = (
    "labels",
    "split",
    "images",
    *(entry.name for entry in fields(InferenceConfig) if entry.name != "batch_pixels"),
    "crf",
    "crf_per_scale",
    "crf_parameters",
    "volumes",
    "unit",
)


@dataclass
class ShownConfig:
    """The images to show. Without a root, the data of the oldest run's evaluation; labels and split may be replaced here."""

    root: str | None = None
    """the data set"""
    labels: str | None = None
    """dense masks: a folder of root, or a path"""
    split: str | None = None
    """list of images"""


@dataclass
class CompareConfig:
    """Runs to compare."""

    folder: str
    """folder of run folders, each with best.pt and evaluation/metrics.json"""
    out: str | None = None
    """picture to write; unset: FOLDER/comparison.png"""
    rows: PositiveInt = 6
    """number of images to show"""
    scribbles: str = "scribbles"
    """scribbles to show beside the image, if there are any: a folder of root, or a path"""
    data: ShownConfig = field(default_factory=ShownConfig)
    cost: CostConfig = field(default_factory=CostConfig)


def main() -> None:
    """Runs the command line above. Raises UserError if the folder has no evaluated run, the data is missing, or the classes
    differ."""
    config = parse(CompareConfig, __doc__, positional=True)
    runs = find_runs(Path(config.folder))
    evaluations = [read_evaluation(path / EVALUATION) for path in runs]
    given = {name: value for name, value in asdict(config.data).items() if value is not None}
    data = SplitConfig(**(given if "root" in given else evaluations[0]["conditions"]["data"] | given))
    index = open_index(data.root, data.split, data.labels)
    methods = [load_model(path / "best.pt") for path in runs]
    for path, method in zip(runs, methods, strict=True):
        check_classes(method.classes, index.classes, path / "best.pt")
    costs = {path.name: hours_of(path.name, config.cost) for path in runs}
    print_table({path.name: scores for path, scores in zip(runs, evaluations, strict=True)}, costs if config.cost.runs else {})
    usual = asdict(InferenceConfig())  # for evaluations from before a setting was there
    settings = [
        usual | one | one["data"] | one["inference"] | {"unit": scores.get("volumes", {}).get("unit")}
        for scores in evaluations
        for one in [scores["conditions"]]
    ]
    differing = [name for name in COMPARABLE if any(other.get(name) != settings[0].get(name) for other in settings)]
    if differing:
        print(f"note: the runs were not all evaluated alike: {', '.join(differing)} differ (see {EVALUATION}/{METRICS})")
    for path, one in zip(runs, settings, strict=True):
        if one["checkpoint_sha256"] != file_sha256(path / "best.pt"):
            print(f"note: {path / EVALUATION / METRICS} is of another checkpoint than {path / 'best.pt'}: evaluate again")
    out = Path(config.out or Path(config.folder) / "comparison.png")
    rows = compare(methods, SegmentationDataset(index), resolve_folder(Path(data.root), config.scribbles), config.rows)
    columns = ["image", "scribbles", *(path.name for path in runs), "truth"]
    if all(row[1] is None for row in rows):  # the data set has no scribbles
        rows, columns = [[row[0], *row[2:]] for row in rows], [columns[0], *columns[2:]]
    with atomic_write(out) as temporary:
        picture_grid(rows, columns).save(temporary, "PNG")
    print(f"pictures: {out}")
    if config.cost.runs:
        points: dict[str, tuple[float, list[float]]] = {}
        for path, scores in zip(runs, evaluations, strict=True):
            cost = costs[path.name]
            if cost is not None:
                points.setdefault(cost[0], (cost[1], []))[1].append(scores["miou"])
        figure = Path(config.folder) / "cost.png"
        draw_costs(points, figure)
        print(f"mIoU over hours of annotation: {figure}")


def print_table(evaluations: dict[str, dict], costs: dict[str, tuple[str, float] | None]) -> None:
    """Prints a row of scores for each run. costs: the hours by run, or {} for no such column."""
    volumes = any("volumes" in scores for scores in evaluations.values())
    further = (f" {'3-D Dice':>8} {'HD95':>7}" if volumes else "") + (f" {'hours':>7}" if costs else "")
    width = max(16, *map(len, evaluations))
    print(f"{'run':<{width}} {'mIoU':>7} {'Dice':>7} {'pixels':>7}" + further)
    for name, scores in evaluations.items():
        row = f"{name:<{width}} " + " ".join(f"{100 * scores[mean]:7.2f}" for mean in MEANS) + of_volumes(scores, volumes)
        if costs:
            cost = costs[name]
            row += f" {'-' if cost is None else f'{cost[1]:.1f}':>7}"
        print(row)


def of_volumes(scores: dict, wanted: bool) -> str:
    """Returns the means of 3-D Dice and HD95 as columns, if they are wanted; "-" for an evaluation without them."""
    if not wanted:
        return ""
    found = scores.get("volumes", {"mean_dice": None, "mean_hd95": None})
    dice, distance = found["mean_dice"], found["mean_hd95"]
    return f" {'-' if dice is None else f'{100 * dice:.2f}':>8} {'-' if distance is None else f'{distance:.2f}':>7}"


def find_runs(folder: Path) -> list[Path]:
    """Returns the evaluated runs in `folder`, oldest first. Raises UserError if there is no evaluated run."""
    runs = [path.parent for path in folder.glob("*/best.pt") if (path.parent / EVALUATION / METRICS).is_file()]
    if not runs:
        raise UserError(f"{folder}: no evaluated run in it; evaluate one by CHECKPOINT={folder}/NAME/best.pt sh evaluate.sh")
    return sorted(runs, key=lambda path: (path / "best.pt").stat().st_mtime)


@torch.inference_mode()
def compare(methods: list[Method], dataset: SegmentationDataset, scribbles: Path, count: int) -> list[list]:
    """Returns a row for each of `count` images: image, scribbles (or None), the prediction of every method, and truth."""
    rows = []
    for position in tqdm(spread_positions(len(dataset), count), "predicting", unit="image", disable=None):
        image, maps = dataset.read(position)
        scribble = read_label_or_none(scribbles / f"{dataset.index.names[position]}.png")
        probabilities = [predict_image(method, image, InferenceConfig()) for method in methods]
        predictions = [most_likely(one).byte().numpy() for one in probabilities]
        rows.append([image, scribble, *predictions, maps["label"]])
    return rows


if __name__ == "__main__":
    run(main)
