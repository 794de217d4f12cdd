"""The method that docs/method.md walks through, taken from the page: it trains, goes on, evaluates and predicts."""

import importlib
import re
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY
from training import LOOP

import evaluate
import methods
import train
from engine.checkpoint import load_model


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The page's code as a module that METHODS names, and its configuration as a file."""
    text = (REPOSITORY / "docs" / "method.md").read_text()
    code, config = (re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1] for language in ("python", "yaml"))
    (tmp_path / "minimum_entropy.py").write_text(code)
    (tmp_path / "minimum_entropy.yaml").write_text(config)
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("minimum_entropy").MinimumEntropy
    monkeypatch.setitem(methods.METHODS, "minimum_entropy", method)
    monkeypatch.setitem(methods.SETTINGS, "minimum_entropy", method.settings)
    yield tmp_path / "minimum_entropy.yaml"
    del sys.modules["minimum_entropy"]


def test_the_page_s_method_trains_goes_on_and_evaluates(page, cli, tiny, tmp_path):
    out = tmp_path / "run"
    command = ["--config", page, *LOOP, "--data.root", tiny, "--out", out]
    assert cli(train.main, *command)[0] == 0
    assert cli(train.main, *command)[0] == 0  # it is done already
    record = yaml.safe_load((out / "config.yaml").read_text())
    assert record["method"] == {"name": "minimum_entropy", "entropy": yaml.safe_load(page.read_text())["method"]["entropy"]}
    first = (out / "metrics.jsonl").read_text().splitlines()[0]
    assert {"cross_entropy", "entropy"} <= yaml.safe_load(first).keys()
    assert load_model(out / "best.pt").predict(torch.zeros(2, 3, 40, 56)).shape == (2, 7, 40, 56)
    code, _, error = cli(evaluate.main, "--checkpoint", out / "best.pt", "--data.root", tiny, "--out", tmp_path / "evaluation")
    assert code == 0, error
    assert (tmp_path / "evaluation" / "metrics.json").is_file()


def test_its_settings_are_checked_as_any_other_s(page, cli, tiny, tmp_path):
    code, _, error = cli(train.main, "--config", page, "--method.entropi", "1", "--data.root", tiny, "--out", tmp_path / "run")
    assert code == 2
    assert error.strip() == "error: unknown key method.entropi: did you mean method.entropy?"
