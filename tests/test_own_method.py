"""The example method of docs/method.md, taken from the page: it trains, resumes, evaluates and predicts."""

import importlib.util
import os
import re
import signal
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

pytestmark = pytest.mark.slow


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Imports the code of the page as a module of methods/, registers it, and returns its config file."""
    text = (REPOSITORY / "docs" / "method.md").read_text()
    code, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "minimum_entropy.py").write_text(code)
    (tmp_path / "minimum_entropy.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    spec = importlib.util.spec_from_file_location("methods.minimum_entropy", tmp_path / "minimum_entropy.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    names = dict(vars(methods))
    exec(entry, names)
    for name, method in names["METHODS"].items():
        monkeypatch.setitem(methods.METHODS, name, method)
        monkeypatch.setitem(methods.SETTINGS, name, method.settings)
    return tmp_path / "minimum_entropy.yaml"


def test_the_method_of_the_docs_trains_resumes_and_evaluates(page, cli, tiny, tmp_path, monkeypatch):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = ["--config", page, *LOOP, "--data.root", tiny, "--out"]
    with monkeypatch.context() as patch:
        stop = lambda self, step, epoch: step == 2 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(methods.METHODS["minimum_entropy"], "begin_step", stop)
        assert cli(train.main, *command, stopped)[0] == 128 + signal.SIGTERM
    for out in (stopped, whole):
        assert cli(train.main, *command, out)[0] == 0
    resumed, uninterrupted = (torch.load(out / "last.pt", weights_only=True)["method"] for out in (stopped, whole))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)

    record = yaml.safe_load((whole / "config.yaml").read_text())
    assert record["method"] == yaml.safe_load(page.read_text())["method"]
    first = yaml.safe_load((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(first["cross_entropy"] + first["entropy"])
    assert load_model(whole / "best.pt").predict(torch.zeros(2, 3, 40, 56)).shape == (2, 7, 40, 56)
    code, _, error = cli(
        evaluate.main, "--checkpoint", whole / "best.pt", "--data.root", tiny, "--out", tmp_path / "evaluation"
    )
    assert code == 0, error
    assert (tmp_path / "evaluation" / "metrics.json").is_file()


def test_an_unknown_setting_of_the_docs_method_is_refused(page, cli, tiny, tmp_path):
    code, _, error = cli(train.main, "--config", page, "--method.entropi", "1", "--data.root", tiny, "--out", tmp_path / "run")
    assert code == 2
    assert error.strip() == "error: unknown key method.entropi: did you mean method.entropy?"
