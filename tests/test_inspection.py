"""Inspection of a run: gradients and figures equal plain formulas, and an inspection does not change the run."""

import json
from functools import partialmethod

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_methods import MODEL, batch
from training import LOOP

import train
from config import DataConfig, TrainConfig
from datasets import open_index
from datasets.batch import to_device
from datasets.files import read_label, write_label
from datasets.segmentation import SegmentationDataset
from engine import report
from engine.distributed import Process
from engine.inspection import first_batch, look_inside
from engine.loading import augmentation
from engine.preparation import compile_backbone
from methods import build_method
from methods.blpseg import BLPSegConfig, self_training_labels
from methods.cc4s import CC4SConfig
from ops import pairs
from ops.resizing import upsample
from ops.walk import spread_of_transitions

ALONE = Process(0, 1, torch.device("cpu"))
SS = CC4SConfig(soft_entropy=1, consistency=30, colour=1, view="flip")


def raw_batch():
    """A batch as `collate` makes it, with images and labels as bytes."""
    made = batch()
    made["image"] = torch.randint(256, made["image"].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    label = made["label"].byte()
    return made | {"label": label, "truth": label, "tags": torch.ones(2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SS, CC4SConfig(network="baseline"), BLPSegConfig(width=16, self_training_from=0)])
def test_term_gradients_equal_those_of_separate_backward_passes(config):
    torch.manual_seed(0)
    method = build_method(config, MODEL, 4)
    if isinstance(config, CC4SConfig):  # dropout would differ between passes
        for module in method.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
    method.begin_step(1, 0.0)
    parts = {name: list(weights) for name, weights in method.parts().items()}
    state = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(1)
    found = look_inside(method, raw_batch(), ALONE, "fp32", loss_scale=8.0)
    assert all(torch.equal(state[name], value) for name, value in method.state_dict().items()), "weights and running statistics"
    assert all(weight.grad is None for weight in method.parameters())

    names = [name.split("/")[1] for name in found if name.endswith("/backbone")]
    assert names == list(method(to_device(raw_batch(), ALONE.device)))
    for term in names:
        method.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        method(to_device(raw_batch(), ALONE.device))[term].backward()
        for part, weights in parts.items():
            squares = [weight.grad.square().sum() for weight in weights if weight.grad is not None]
            want = sum(squares).sqrt().item() if squares else 0.0
            # Batch norm over two images amplifies rounding, which differs between passes.
            assert found[f"gradient/{term}/{part}"] == pytest.approx(want, rel=2e-2, abs=1e-6), (term, part)
    if config is SS:
        assert found["gradient/consistency/query_key"] > 0
        # gamma is 0 at the start, so losses after the walk have no gradient at queries and keys.
        assert found["gradient/cross_entropy/query_key"] == 0


@pytest.mark.slow
def test_inspection_works_with_a_compiled_backbone(monkeypatch):
    """An inspection runs one backward pass per term. By default, a compiled graph allows only one backward pass."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    method = build_method(CC4SConfig(soft_entropy=1), MODEL, 4).train()
    with torch._dynamo.config.patch(suppress_errors=False):
        compile_backbone(method)
        sum(method(to_device(raw_batch(), ALONE.device)).values()).backward()
        found = look_inside(method, raw_batch(), ALONE, "fp32")
    assert found["gradient/cross_entropy/backbone"] > 0 and found["gradient/soft_entropy/backbone"] > 0


def test_inspection_works_with_frozen_weights_and_late_terms():
    method = build_method(CC4SConfig(soft_entropy=1), MODEL, 4)
    method.network.backbone.conv1.weight.requires_grad_(False)
    losses = method.forward
    method.forward = lambda batch: losses(batch) | {"late": torch.zeros(())}
    found = look_inside(method, raw_batch(), ALONE, "fp32")
    assert found["gradient/cross_entropy/backbone"] > 0 and found["gradient/late/backbone"] == 0


@pytest.mark.parametrize("held", [7, 10**9])
def test_the_figures_of_the_walk_equal_the_dense_formulas(monkeypatch, held):
    monkeypatch.setitem(pairs.HELD, "cpu", held)
    query, key = torch.randn(2, 3, 8, 4, 5)
    deviation, spread = spread_of_transitions(query, key)
    energy = query.flatten(2).mT.double() @ key.flatten(2).double()
    transition = energy.softmax(dim=-1)
    entropy = -(transition * transition.log()).sum(dim=-1)
    assert deviation.item() == pytest.approx(energy.std(dim=(1, 2), correction=0).mean().item(), rel=1e-5)
    assert spread.item() == pytest.approx(entropy.exp().mean().item(), rel=1e-5)


def test_an_even_walk_spreads_over_all_positions_a_certain_walk_over_one():
    same = torch.ones(1, 2, 3, 4)
    deviation, spread = spread_of_transitions(same, same)
    assert deviation.item() == pytest.approx(0, abs=1e-6) and spread.item() == pytest.approx(12)
    apart = 100 * torch.eye(12).view(1, 12, 3, 4)
    assert spread_of_transitions(apart, apart)[1].item() == pytest.approx(1)


def test_self_training_labels_are_compared_with_masks_of_the_same_crops(tiny, tmp_path):
    index = open_index(tiny, "train", "scribbles")
    dataset = SegmentationDataset(index, augmentation(DataConfig(crop=65)), seed=3)
    settings = TrainConfig(batch_size=4, seed=3)
    given_batch = first_batch(dataset, tiny / "SegmentationClass", settings, ALONE)
    scribbled = given_batch["label"] != 255
    agreeing = (given_batch["truth"] == given_batch["label"])[scribbled].float().mean()
    assert scribbled.any() and agreeing > 0.95, "the demo's scribbles lie within the masks"
    assert (first_batch(dataset, tiny / "none", settings, ALONE)["truth"] == 255).all(), "no mask"
    mask_files = [tiny / f"SegmentationClass/{name}.png" for name in index.names[:4]]
    for number, file in enumerate(mask_files):
        write_label(
            tmp_path / file.name, read_label(file) if number % 2 else np.full((5, 5), 1, np.uint8)
        )  # even numbers: another size
    (tmp_path / mask_files[3].name).write_bytes(b"damaged")
    partly = first_batch(dataset, tmp_path, TrainConfig(batch_size=8, seed=3), ALONE)["truth"]
    assert sum((mask != 255).any().item() for mask in partly) == 1, "one mask fits"

    method = build_method(BLPSegConfig(width=16, self_training_from=5, threshold=0.1), MODEL, 7)
    method.begin_step(4, 0.0)
    found = look_inside(method, given_batch, ALONE, "fp32")
    assert not any(name.startswith("self_training/") for name in found), "before self-training begins"
    method.begin_step(5, 0.0)
    given = to_device(given_batch, ALONE.device)
    torch.manual_seed(1)
    with torch.no_grad():
        figures = method.train().figures(given)
    torch.manual_seed(1)
    logits = upsample(method.network.segment(given["image"], method.network.features(given["image"])), (65, 65), False)
    label = self_training_labels(logits, given["label"], given["outside"], given["tags"], 0.1)
    for number in range(7):
        ours, theirs = (label == number) & (given["truth"] != 255), given["truth"] == number
        if theirs.any():
            want = (ours & theirs).sum() / theirs.sum()
            assert figures[f"self_training/coverage/{number}"] == pytest.approx(want.item())
    assert {name.split("/")[1] for name in figures} == {"precision", "coverage"}


@pytest.mark.slow
def test_inspections_are_written_and_drawn_and_change_no_weight(tiny, tmp_path, cli):
    flags = [*LOOP, "--data.root", tiny, "--method.soft_entropy", "1", "--method.consistency", "30"]
    for run, more in (("every_step", ["--train.inspect_steps", "1"]), ("default", [])):
        assert cli(train.main, *flags, *more, "--out", tmp_path / run)[0] == 0
    weights = [torch.load(tmp_path / run / "last.pt", weights_only=True)["method"] for run in ("every_step", "default")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    lines = {run: (tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("every_step", "default")}
    looks = {run: [line for line in map(json.loads, some) if "walk/gamma" in line] for run, some in lines.items()}
    assert [line["step"] for line in looks["every_step"]] == [1, 2, 3, 4]
    assert [line["step"] for line in looks["default"]] == [2, 4], "one inspection per validation"
    assert looks["default"] == looks["every_step"][1::2], "the same images, dropout and views every time"
    terms = ("consistency", "cross_entropy", "soft_entropy")
    assert looks["default"][0].keys() - {"step", "epoch"} == {
        "walk/gamma", "walk/energy_deviation", "walk/spread",
        *(f"gradient/{term}/{part}" for term in terms for part in ("backbone", "query_key")),
    }  # fmt: skip
    assert 1 <= looks["default"][0]["walk/spread"] <= 25, "of 5 x 5 positions"
    board = EventAccumulator(str(tmp_path / "default")).Reload()
    for name, value in looks["default"][-1].items():
        if name not in ("step", "epoch"):
            assert board.Scalars(name)[-1].value == pytest.approx(value)
    page = (tmp_path / "default/report.html").read_text()
    for title in ("at the backbone weights", "at the query and key weights", "Walk: gamma", "positions that a row"):
        assert title in page


def test_the_report_draws_late_terms_and_the_figures_of_a_method(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        report, "_plot", lambda lines, keys, ylabel, scale="linear": drawn.setdefault(ylabel, []).extend(keys) or ""
    )
    lines = [
        {"step": 1, "epoch": 0.1, "lr": 0.1, "loss": 1.0, "early": 1.0},
        {"step": 2, "epoch": 0.2, "lr": 0.1, "loss": 2.0, "early": 1.0, "late": 1.0},
        {"step": 2, "epoch": 0.2, "gradient/late/backbone": 3.0, "mine/balance": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("method: {name: m}\nmodel: {backbone: b}\ndata: {labels: l, tags: labels}\n")
    report.training_report(tmp_path)
    assert drawn["loss term, as weighted"] == ["loss", "early", "late"]
    assert drawn["L2 norm"] == ["gradient/late/backbone"] and drawn["balance"] == ["mine/balance"]
    assert "mine/balance" in (tmp_path / "report.html").read_text()
