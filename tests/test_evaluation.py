"""evaluate.py as a user runs it: metrics.json, the report, notes and refusals."""

import json
import re

import numpy as np
import pytest
import torch

import evaluate
from config import Config, EvaluateConfig, ModelConfig, RunConfig
from datasets import open_index
from datasets.drawing import demo
from datasets.segmentation import SegmentationDataset
from datasets.transforms import normalise
from engine import distributed
from engine.checkpoint import load_model, save_checkpoint
from engine.inference import on_grid
from engine.metrics import ConfusionMatrix, read_evaluation
from engine.pictures import RIGHT, VOID, WRONG, error_map
from errors import UserError
from methods import build_method
from methods.blpseg import BLPSegConfig


def test_metrics_json_records_the_conditions_of_the_evaluation(checkpoints, tiny, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path]
    code, output, _ = cli(evaluate.main, *arguments, "--inference.flip")
    assert code == 0 and "boundary IoU" in output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    conditions = metrics["conditions"]
    assert conditions["images"] == 3 and conditions["inference"]["flip"] is True and conditions["crf"] == "none"
    assert len(conditions["checkpoint_sha256"]) == 64 and "torch" in conditions["versions"] and "commit" in conditions
    hit = np.diagonal(metrics["confusion_matrix"]).sum()
    assert metrics["pixel_accuracy"] == hit / np.sum(metrics["confusion_matrix"])
    assert 0 <= metrics["boundary_iou"] <= 1 and len(metrics["boundary_iou_per_class"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "pydensecrf"])
def test_metrics_json_records_the_crf(checkpoints, tiny, tmp_path, cli, library):
    if library == "pydensecrf":
        pytest.importorskip("pydensecrf")
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path, "--crf", library]
    code, _, error = cli(evaluate.main, *arguments)
    assert code == 0, error
    conditions = json.loads((tmp_path / "metrics.json").read_text())["conditions"]
    assert conditions["crf_parameters"]["bilateral_sxy"] == 80 and conditions["processes"] == 1 and "device" in conditions
    assert ("pydensecrf" in conditions["versions"]) == (library == "pydensecrf")


@pytest.mark.slow
def test_evaluate_prints_a_note_about_the_preset_of_another_method(tmp_path, tiny, cli):
    config = Config(method=BLPSegConfig(width=16), model=ModelConfig(backbone="resnet18"))
    save_checkpoint(tmp_path / "blpseg.pt", build_method(config.method, config.model, 7), config, demo.CLASSES)
    arguments = ["--checkpoint", tmp_path / "blpseg.pt", "--data.root", tiny, "--out", tmp_path / "out"]
    code, _, error = cli(evaluate.main, *arguments, "--preset", "cc4s", "--inference.scales", "[1]")
    assert code == 0 and "this method's is --preset blpseg" in error
    assert "note" not in cli(evaluate.main, *arguments, "--preset", "blpseg")[2]


def test_an_evaluation_does_not_overwrite_the_report_of_a_training(checkpoints, tiny, tmp_path, cli):
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / "report.html").write_text("of the training")
    code, _, error = cli(evaluate.main, "--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path)
    assert code == 2 and "is a training run: choose another --out" in error
    assert (tmp_path / "report.html").read_text() == "of the training"


def test_the_report_is_one_self_contained_page(checkpoints, tiny, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny]
    assert cli(evaluate.main, *arguments, "--out", tmp_path / "first/evaluation")[0] == 0
    first = tmp_path / "first/evaluation/metrics.json"
    scores = json.loads(first.read_text())
    scores["iou"] |= {"background": 0.125, "disc": None}
    first.write_text(json.dumps(scores))
    flags = ["--inference.flip", "--compare", tmp_path / "first/evaluation", "--out", tmp_path / "second"]
    assert cli(evaluate.main, *arguments, *flags)[0] == 0
    page = (tmp_path / "second/report.html").read_text()
    metrics = json.loads((tmp_path / "second/metrics.json").read_text())
    assert f"<b>{100 * metrics['miou']:.2f}%</b>" in page
    assert "IoU of first" in page and "<td>12.50%</td>" in page
    assert f"{100 * (metrics['iou']['background'] - 0.125):+.2f}" in page
    pictures = re.findall(r'<img src="([^"]*)"', page)
    assert pictures and all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert not re.search(r"https?://|<script|<link", page)
    assert metrics["conditions"]["checkpoint_sha256"] in page and "demo_00" not in page, "image names are part of the pictures"
    code, _, error = cli(evaluate.main, *arguments, "--compare", tmp_path, "--out", tmp_path / "third")
    assert code == 2 and "metrics.json not found: evaluate the run first" in error and not (tmp_path / "third").exists()


def test_an_incomplete_metrics_json_is_refused(checkpoints, tiny, tmp_path, cli):
    assert cli(evaluate.main, "--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path)[0] == 0
    scores = read_evaluation(tmp_path)
    conditions = scores["conditions"]
    incomplete = [scores | {name: None} for name in ("iou", "dice", "conditions")]
    incomplete += [scores | {"conditions": conditions | {name: None}} for name in ("data", "inference", "checkpoint_sha256")]
    incomplete += [scores | {"conditions": conditions | {"data": {"root": str(tiny)}}}, {}, []]
    incomplete += [scores | {"conditions": conditions | {"data": conditions["data"] | {"more": 1}}}]
    for broken in incomplete:
        (tmp_path / "metrics.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"evaluate the run again"):
            read_evaluation(tmp_path)


def test_the_error_map_marks_right_wrong_and_void_pixels():
    prediction, truth = np.array([[0, 1, 1]], np.uint8), np.array([[0, 0, 255]], np.uint8)
    assert error_map(prediction, truth).tolist() == [[list(RIGHT), list(WRONG), list(VOID)]]


def test_the_report_shows_the_images_with_the_best_and_worst_miou(checkpoints, tiny, monkeypatch):
    dataset = SegmentationDataset(open_index(tiny, "train", "SegmentationClass"))
    monkeypatch.setattr(evaluate, "PICTURES", 2)
    method = load_model(checkpoints / "seven.pt")
    config = EvaluateConfig(checkpoint="", workers=0, run=RunConfig(precision="fp32"))
    process = distributed.Process(0, 1, torch.device("cpu"))
    _, _, shown = evaluate.score(method, dataset, config, process)
    everything = []
    for position, name in enumerate(dataset.index.names):
        matrix = ConfusionMatrix(7)
        with torch.inference_mode():
            item = dataset[position]
            matrix.update(on_grid(method)(normalise(item["image"][None]))[0].argmax(dim=0), item["label"])
        everything.append((matrix.scores(dataset.index.classes)["miou"], name))
    ranked = [name for _, name in sorted(everything)]
    assert [image.name for image in shown["Worst images"]] == ranked[:2]
    assert [image.name for image in shown["Best images"]] == ranked[:-3:-1]
    assert all(image.entropy.min() >= 0 and image.entropy.max() <= 1 + 1e-6 for images in shown.values() for image in images)
