"""The training loop: length of a run, best checkpoint, first weights, random numbers, compilation."""

import json
import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torchvision
from steady import steady_method
from training import FLAGS, LOOP

import train
from config import ModelConfig, TrainConfig
from datasets.segmentation import SegmentationDataset
from engine import preparation
from methods import build_method
from methods.cc4s import CC4SConfig

pytestmark = pytest.mark.slow


def state(run, name="last.pt"):
    return torch.load(run / name, weights_only=True)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(monkeypatch, *mious):
    """Replaces the validations of a run: they return these scores."""
    scores = iter(mious)
    monkeypatch.setattr(train, "validate", lambda *_: {"miou": next(scores), "dice": 0.5, "pixel_accuracy": 0.5})


@pytest.mark.parametrize("mious, step, best", [((0.2, 0.5, 0.3), 2, 0.5), ((math.nan,) * 3, 3, math.nan)])
def test_best_pt_is_the_checkpoint_with_the_best_validation(monkeypatch, tiny, tmp_path, cli, mious, step, best):
    """Without a score (a split without labels), the newest checkpoint is the best."""
    validations(monkeypatch, *mious)
    flags = ["--train.steps", "3", "--train.val_steps", "1", "--data.root", tiny, "--out", tmp_path]
    assert cli(train.main, *FLAGS, *flags)[0] == 0
    kept = state(tmp_path, "best.pt")
    assert kept["step"] == step and kept["scores"]["miou"] == pytest.approx(best, nan_ok=True)
    assert state(tmp_path)["best"] == pytest.approx(best, nan_ok=True)
    same = torch.equal(kept["method"]["network.classifier.1.weight"], state(tmp_path)["method"]["network.classifier.1.weight"])
    assert same == (step == 3), "best.pt has the weights of the best step"


def test_an_epoch_is_one_pass_over_the_images(monkeypatch, tiny, tmp_path, cli):
    """Eight images in batches of four: an epoch has two steps."""
    validations(monkeypatch, 0.1, 0.2)
    epochs = ["--train.steps", "null", "--train.epochs", "2", "--train.val_steps", "null", "--train.val_epochs", "1"]
    flags = ["--train.batch_size", "4", "--data.root", tiny, "--out", tmp_path]
    assert cli(train.main, *FLAGS, *epochs, *flags)[0] == 0
    assert [(line["step"], line["epoch"]) for line in lines(tmp_path) if "loss" in line] == [(1, 0.5), (2, 1), (3, 1.5), (4, 2)]
    assert [line["step"] for line in lines(tmp_path) if "val_miou" in line] == [2, 4]


def test_an_accumulated_step_equals_a_step_with_the_whole_batch(monkeypatch, tiny, tmp_path, cli):
    """With frozen batch norm, no dropout, and the same number of labelled pixels in every image."""
    monkeypatch.setattr(preparation, "build_method", steady_method)
    validations(monkeypatch, 0.1, 0.1)
    flags = ["--data.labels", "SegmentationClass", "--data.scale", "[1,1]", "--data.rotation", "0", "--train.lr", "0.001"]
    flags += ["--train.batch_size", "4", "--train.steps", "2", "--data.root", tiny]
    for accumulate in "14":
        assert cli(train.main, *LOOP, *flags, "--train.accumulate", accumulate, "--out", tmp_path / accumulate)[0] == 0
    want = state(tmp_path / "1")["method"]
    for key, value in state(tmp_path / "4")["method"].items():
        torch.testing.assert_close(value, want[key], rtol=1e-5, atol=1e-6)
    ours, theirs = ([line["loss"] for line in lines(tmp_path / accumulate) if "loss" in line] for accumulate in "41")
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_starts_from_backbone_weights_or_from_another_run(tiny, checkpoints, tmp_path, cli):
    torch.manual_seed(5)  # a seed that differs from the run's and the checkpoint's, so that all weights differ
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    flags = ["--train.steps", "1", "--train.lr", "1e-12", "--train.seed", "1", "--data.root", tiny]
    flags += ["--model.weights", tmp_path / "resnet18.pth"]
    assert cli(train.main, *FLAGS, *flags, "--out", tmp_path / "weights")[0] == 0
    assert cli(train.main, *FLAGS, *flags, "--out", tmp_path / "init", "--init", checkpoints / "seven.pt")[0] == 0
    key = "backbone.conv1.weight"
    torch.testing.assert_close(
        state(tmp_path / "weights")["method"][f"network.{key}"], state(tmp_path, "resnet18.pth")[key[9:]]
    )
    init = state(checkpoints, "seven.pt")["method"][f"network.{key}"]
    torch.testing.assert_close(state(tmp_path / "init")["method"][f"network.{key}"], init)


def test_the_seed_decides_weights_order_augmentation_and_step_seeds(monkeypatch, tiny, tmp_path, cli):
    seen = {}
    build, seed_everything, draw = preparation.build_method, train.seed_everything, SegmentationDataset.__getitem__

    def building(*arguments):
        method = build(*arguments)
        run["weights"] = method.network.classifier[1].weight.detach().clone()
        return method

    def seeding(*numbers):
        run["steps"].append(numbers)
        seed_everything(*numbers)

    def drawing(self, key):
        item = draw(self, key)
        if isinstance(key, tuple):
            run["drawn"][key] = item["image"]
        return item

    monkeypatch.setattr(preparation, "build_method", building)
    monkeypatch.setattr(train, "seed_everything", seeding)
    monkeypatch.setattr(SegmentationDataset, "__getitem__", drawing)
    validations(monkeypatch, 0.1, 0.2, 0.1, 0.2)
    for seed in (3, 4):
        run = seen[seed] = {"steps": [], "drawn": {}}
        flags = ["--train.seed", seed, "--data.root", tiny, "--out", tmp_path / str(seed)]
        code, printed, _ = cli(train.main, *FLAGS, *flags)
        assert code == 0 and "no superpixels" in printed and "count every pixel" in printed
        inspection = (seed, 0, 0)  # an inspection, which comes with a validation, always has the seeds of the first step
        assert run["steps"] == [(seed, 0, 0), (seed, 1, 0), inspection, (seed, 2, 0), (seed, 3, 0), inspection]
    three, four = seen[3], seen[4]
    assert not torch.equal(three["weights"], four["weights"])
    assert list(three["drawn"]) != list(four["drawn"]) and three["drawn"].keys() == four["drawn"].keys(), "all eight images"
    assert not any(torch.equal(image, four["drawn"][key]) for key, image in three["drawn"].items())


def test_each_process_and_each_step_has_different_random_numbers():
    drawn = []
    for numbers in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0)):
        train.seed_everything(*numbers)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 4 and drawn[0] == drawn[4]


@pytest.mark.parametrize("settings, kind", [
    (TrainConfig(lr=0.3, momentum=0.8, weight_decay=0.02), torch.optim.SGD),
    (TrainConfig(lr=3.0, lr_factor=0.1, weight_decay=0.02), torch.optim.SGD),
    (TrainConfig(optimizer="adamw", lr=0.3, weight_decay=0.02), torch.optim.AdamW),
])  # fmt: skip
def test_the_optimizer_has_the_configured_settings(settings, kind):
    method = build_method(CC4SConfig(), ModelConfig("resnet18"), 2)
    optimizer = preparation.build_optimizer(method, settings)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.3), 0.02)
        assert group.get("momentum", settings.momentum) == settings.momentum


def test_if_compiling_fails_the_backbone_runs_without_it(monkeypatch, tiny, tmp_path, cli):
    def no_compiler(graph, inputs):
        tried.append(graph)
        raise RuntimeError("no C++ compiler")

    tried, compile_module = [], torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend=no_compiler))
    flags = [*FLAGS, "--train.steps", "1", "--data.root", tiny]
    with torch._dynamo.config.patch(suppress_errors=False):
        for name, more in (("plain", []), ("compiled", ["--compile"])):
            assert cli(train.main, *flags, *more, "--out", tmp_path / name)[0] == 0
    assert tried
    plain, compiled = (state(tmp_path / name)["method"] for name in ("plain", "compiled"))
    assert all(torch.equal(plain[key], compiled[key]) for key in plain)


def test_compile_affects_the_backbone_but_not_the_checkpoint_keys(monkeypatch, tiny, tmp_path, cli):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    validations(monkeypatch, 0.1, 0.2)
    flags = [*FLAGS, "--train.steps", "1", "--data.root", tiny]
    with torch._dynamo.config.patch(suppress_errors=False):
        for name, more in (("plain", []), ("compiled", ["--compile"])):
            assert cli(train.main, *flags, *more, "--out", tmp_path / name)[0] == 0
            assert len(compiled) == len(more)
    assert isinstance(compiled[0].conv1, torch.nn.Conv2d)
    assert state(tmp_path / "plain")["method"].keys() == state(tmp_path / "compiled")["method"].keys()


def test_a_step_that_the_loss_scaler_skips_does_not_reach_the_average(monkeypatch):
    """fp16: the scaler skips a step with infinite gradients."""
    weight = torch.nn.Parameter(torch.zeros(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run = SimpleNamespace(
        method=Mock(),
        config=SimpleNamespace(train=SimpleNamespace(seed=0), skip_nonfinite=0),
        process=SimpleNamespace(rank=0, device=torch.device("cpu")),
        **{"model": None, "batches": None, "finite": Mock(), "epoch": float},
        optimizer=torch.optim.SGD([weight], lr=1.0),
        scaler=scaler,
    )
    for gradient, updates in ((1.0, 1), (math.inf, 1), (1.0, 2)):
        monkeypatch.setattr(train, "forward_backward", lambda *_, by=gradient: scaler.scale(by * weight.sum()).backward())
        train.take_step(run, 0)
        assert run.method.after_step.call_count == updates
    assert weight.item() == -2
