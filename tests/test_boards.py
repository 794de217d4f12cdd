"""Boards: MLflow with a local store, Weights & Biases offline, TensorBoard, and none; also over a resume."""

import json
import os
import signal
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mistakes import assert_refused
from training import LOOP

import train
from methods.cc4s import CC4S


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Local places for the boards."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.slow
def test_all_boards_get_the_figures_of_metrics_jsonl_and_a_resumed_run_stays_one_run(stores, tiny, tmp_path, cli, monkeypatch):
    mlflow, _ = pytest.importorskip("mlflow"), pytest.importorskip("wandb")
    out = tmp_path / "watched"
    command = [*LOOP, "--data.root", tiny, "--out", out, "--log", "[tensorboard, mlflow, wandb]"]
    with monkeypatch.context() as patch:
        patch.setattr(CC4S, "begin_step", lambda self, step, epoch: step == 2 and os.kill(os.getpid(), signal.SIGTERM))
        assert cli(train.main, *command)[0] == 128 + signal.SIGTERM
    code, _, error = cli(train.main, *command)
    assert code == 0, error

    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.run_name == "watched" and run.info.status == "FINISHED" and run.data.params["train.steps"] == "4"
    assert {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, "loss")} == pytest.approx(losses)
    assert "val_miou" in run.data.metrics and client.list_artifacts(run.info.run_id, "pictures")

    folders = list((out / "wandb").glob("offline-run-*"))
    assert {folder.name.rsplit("-", 1)[1] for folder in folders} == {json.loads((out / "wandb.json").read_text())["run"]}
    assert all(list(folder.glob("*.wandb")) for folder in folders)

    events = EventAccumulator(str(out)).Reload()
    assert {event.step for event in events.Scalars("loss")} == set(losses)


@pytest.mark.slow
def test_a_run_may_have_no_board(tiny, tmp_path, cli):
    code, _, error = cli(
        train.main, *LOOP, "--data.root", tiny, "--out", tmp_path / "quiet", "--train.steps", "1", "--log", "[]"
    )
    assert code == 0, error
    assert not list((tmp_path / "quiet").glob("events*")) and (tmp_path / "quiet/metrics.jsonl").is_file()


@pytest.mark.slow
def test_a_missing_package_or_store_is_one_line(tiny, tmp_path, cli, monkeypatch):
    command = [*LOOP, "--data.root", tiny, "--out", tmp_path / "out", "--log"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        assert_refused(cli(train.main, *command, "[wandb]"), "--log wandb: the package is missing: run pip install wandb")
    assert_refused(cli(train.main, *command, "[board]"), "log board: did you mean tensorboard?")
