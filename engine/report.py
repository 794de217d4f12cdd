"""report.html of a training run or an evaluation: one file that loads no other file."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import yaml
from PIL import Image

from datasets.files import PALETTE, write_text
from engine.pictures import error_map, heat, picture_grid

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TEMPLATE = Path(__file__).with_suffix(".html.j2")
NOT_LOSSES = ("step", "epoch", "lr")


@dataclass
class Shown:
    """An evaluated image in the size of the report."""

    name: str
    miou: float
    """mIoU of this image alone, a fraction of 1"""
    image: np.ndarray
    """(H, W, 3) uint8 RGB"""
    scribbles: np.ndarray | None
    """(H, W) uint8 class ids, 255 = unlabelled"""
    prediction: np.ndarray
    """(H, W) uint8 class ids"""
    truth: np.ndarray
    """(H, W) uint8 class ids, 255 = unlabelled"""
    entropy: np.ndarray
    """(H, W) float, entropy of the predicted probabilities, 0 (certain) to 1 (all classes equally likely)"""


def training_report(run: Path) -> None:
    """Writes RUN/report.html from RUN/metrics.jsonl, config.yaml and pictures.png."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "val_miou" in line]
    config = (run / "config.yaml").read_text()
    curves = {}
    if losses:
        terms = dict.fromkeys(key for line in losses for key in line if key not in NOT_LOSSES)
        curves["Losses"] = _plot(losses, list(terms), "loss term, as weighted")
    if scores:
        curves["Validation"] = _plot(scores, ["val_miou", "val_dice", "val_pixel_accuracy"], "fraction of 1")
    if losses:
        curves["Learning rate"] = _plot(losses, ["lr"], "learning rate")
    curves |= _inside(lines)
    valid = [line["val_miou"] for line in scores if line["val_miou"] is not None]
    last = lines[-1] if lines else {"step": 0, "epoch": 0}
    figures = {
        "best validation mIoU": f"{100 * max(valid):.2f}%" if valid else "-",
        "steps": last["step"],
        "epochs": f"{last['epoch']:.2f}",
    }
    pictures = []
    if (run / "pictures.png").is_file():
        with Image.open(run / "pictures.png") as grid:
            legend = "Training and validation images after the last validation. Grey: unlabelled, or no label map."
            pictures.append({"title": "Pictures", "legend": legend, "colours": [], "picture": _embed(grid)})
    if (run / "inside.png").is_file():
        with Image.open(run / "inside.png") as grid:
            legend = "Images of the first batch. Numbers: dark is 0, yellow is 1. Errors are red."
            pictures.append({"title": "Inside the method", "legend": legend, "colours": [], "picture": _embed(grid)})
    described = yaml.safe_load(config)
    labels = "tags.json" if described["data"]["tags"] == "file" else described["data"]["labels"]
    lead = f"{described['method']['name']}, {described['model']['backbone']}, trained on {labels}"
    _write(
        run,
        title=f"Training: {run.name}",
        lead=lead,
        figures=figures,
        curves=curves,
        table=_label_table(lines),
        pictures=pictures,
        conditions=config,
    )


def _label_table(lines: list[dict]) -> dict | None:
    """Returns precision and coverage by class of the run's pseudo-labels, or None if the run has none or no masks exist."""
    first = next((line for line in lines if line["step"] == 0), {})
    kinds = ("precision", "coverage")
    names = dict.fromkeys(key.split("/", 2)[2] for key in first if key.startswith("labels/"))
    if not names:
        return None
    rows = [[{"text": name}, *({"text": _percent(first.get(f"labels/{kind}/{name}"))} for kind in kinds)] for name in names]
    columns = ["class", "precision: labels that are right", "coverage: pixels with the right label"]
    return {"title": "Pseudo-labels against the masks", "columns": columns, "rows": rows}


def evaluation_report(out: Path, record: dict, shown: dict[str, list[Shown]], compared: tuple[str, dict] | None = None) -> None:
    """Writes OUT/report.html. record: the content of metrics.json. shown: images by section heading.
    compared: name and content of metrics.json of another evaluation, for the table."""
    classes = list(record["iou"])
    figures = {
        "mIoU": _percent(record["miou"]),
        "Dice": _percent(record["dice"]),
        "pixel accuracy": _percent(record["pixel_accuracy"]),
        "boundary IoU": _percent(record["boundary_iou"]),
        "images": record["conditions"]["images"],
    }
    if "volumes" in record:
        figures |= {"3-D Dice": _percent(record["volumes"]["mean_dice"]), "volumes": len(record["volumes"]["per_volume"])}
        distance = record["volumes"]["mean_hd95"]
        figures[f"HD95, {record['volumes']['unit']}"] = "-" if distance is None else f"{distance:.2f}"
    seen: set[str] = set()
    parts = {}
    for title, some in shown.items():  # in a small split, an image may be in several sections
        parts[title] = [one for one in some if one.name not in seen]
        seen |= {one.name for one in some}
    colours = [(name, "rgb({}, {}, {})".format(*PALETTE[number])) for number, name in enumerate(classes)]
    legend = "Each image has its own mIoU. Errors are red. Entropy: dark is certain, yellow is all classes equally likely."
    pictures = [
        {"title": title, "legend": legend, "colours": colours, "picture": _embed(_grid(part))}
        for title, part in parts.items()
        if part
    ]
    conditions = record["conditions"]
    lead = f"{conditions['checkpoint']} on split {conditions['data']['split']} of {conditions['data']['root']}"
    _write(
        out,
        title="Evaluation",
        lead=lead,
        figures=figures,
        curves={},
        table=_table(record, compared),
        pictures=pictures,
        conditions=yaml.safe_dump(json.loads(json.dumps(conditions)), sort_keys=False),
    )


def _grid(shown: Sequence[Shown]) -> Image.Image:
    columns = ["image", "scribbles", "prediction", "truth", "errors", "entropy"]
    rows = [
        [
            one.image,
            one.scribbles,
            one.prediction,
            one.truth,
            error_map(one.prediction, one.truth),
            heat(one.entropy),
        ]
        for one in shown
    ]
    if all(one.scribbles is None for one in shown):
        columns.pop(1)
        rows = [[row[0], *row[2:]] for row in rows]
    titles = [f"{one.name}  {_percent(one.miou)}" for one in shown]
    return picture_grid(rows, columns, titles)


def _table(record: dict, compared: tuple[str, dict] | None) -> dict:
    """Returns scores by class as header and rows of cells, with the difference from the IoU of another evaluation."""
    other = compared[1]["iou"] if compared else {}
    volumes = record.get("volumes")
    columns = ["class", "IoU", "Dice", "boundary IoU", *(["3-D Dice", "HD95"] if volumes else [])]
    columns += [f"IoU of {compared[0]}", "difference"] if compared else []
    rows = []
    for name, iou in record["iou"].items():
        values = [iou, record["dice_per_class"][name], record["boundary_iou_per_class"][name]]
        cells = [{"text": name}, *({"text": _percent(value)} for value in values)]
        if volumes:
            dice, distance = (volumes[kind].get(name, {}).get("mean") for kind in ("dice", "hd95"))
            cells += [{"text": _percent(dice)}, {"text": "-" if distance is None else f"{distance:.2f}"}]
        if compared:
            theirs = other.get(name)
            cells.append({"text": _percent(theirs)})
            difference = None if iou is None or theirs is None else 100 * (iou - theirs)
            kind = "" if not difference else "better" if difference > 0 else "worse"
            cells.append({"text": "-" if difference is None else f"{difference:+.2f}", "kind": kind})
        rows.append(cells)
    return {"title": "Classes", "columns": columns, "rows": rows}


# Figure of `engine.inspection` -> title and axis of its curve. Other figures use their own name.
TITLES = {
    "walk/gamma": ("Walk: gamma, the weight of the walked features", "gamma"),
    "walk/energy_deviation": ("Walk: standard deviation of the energies", "deviation"),
    "walk/spread": ("Walk: positions that a row of the transition matrix spreads over", "positions"),
    "pairs/share": ("Pairs: images whose partner shares a class", "fraction of 1"),
    "rectification/weight_where_right": ("Rectification: mean weight of right pseudo-labels", "weight"),
    "rectification/weight_where_wrong": ("Rectification: mean weight of wrong pseudo-labels", "weight"),
    "weak_view/confident": ("Weak view: pixels whose prediction becomes a label", "fraction of 1"),
    "weak_view/precision": ("Weak view: labels that are right", "fraction of 1"),
    "seeds/precision": ("Certain labels of objects: labels that are right", "fraction of 1"),
    "seeds/recall": ("Certain labels of objects: pixels of objects with the right label", "fraction of 1"),
    "seeds/labelled": ("Certain labels: pixels with a label, background included", "fraction of 1"),
}


def _inside(lines: list[dict]) -> dict[str, str]:
    """Returns title -> curves of the figures from the looks inside the run."""
    looks = [line for line in lines if any(key.startswith("gradient/") for key in line)]
    if not looks:
        return {}
    curves = {}
    for kind in ("precision", "coverage"):
        found = {key for line in looks for key in line if key.startswith(f"self_training/{kind}/")}
        if found:
            by_id = sorted(found, key=lambda key: int(key.split("/")[2]))
            curves[f"Self-training labels: {kind} by class id"] = _plot(looks, by_id, "fraction of 1")
    gradients = [key.split("/") for key in looks[-1] if key.startswith("gradient/")]
    for part in dict.fromkeys(part for _, _, part in gradients):
        keys = [f"gradient/{term}/{part}" for _, term, of in gradients if of == part]
        title = f"Gradient of each loss term at the {part.replace('_', ' and ')} weights"
        curves[title] = _plot(looks, keys, "L2 norm", scale="log")
    for key in looks[-1]:
        if all(line.get(key) is None for line in looks):  # such as the quality of pseudo-labels without masks
            continue
        if "/" in key and not key.startswith(("gradient/", "self_training/")):
            title, ylabel = TITLES.get(key, (key.replace("_", " "), key.rsplit("/", 1)[-1]))
            curves[title] = _plot(looks, [key], ylabel)
    return curves


def _plot(lines: list[dict], keys: list[str], ylabel: str, scale: str = "linear") -> str:
    """Returns curves over steps as a data URL. A log scale has no points for values of 0."""
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        points = [(step, value) for step, value in points if scale == "linear" or value > 0]
        if points:
            kind, *names = key.split("/")
            label = names[0] if kind == "gradient" else names[-1] if kind == "self_training" else key
            axis.plot(*zip(*points, strict=True), label=label.replace("_", " "), marker="." if len(points) < 30 else None)
    axis.set_yscale(scale)
    axis.set_xlabel("step")
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    if len(keys) > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    return _data_url(buffer)


def _embed(picture: Image.Image) -> str:
    """Returns a picture as a data URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return _data_url(buffer)


def _data_url(png: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}%"


def _write(out: Path, **content: object) -> None:
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    write_text(out / "report.html", template.render(**content))
