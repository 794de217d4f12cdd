"""Boards: MLflow with a local store, Weights & Biases offline, TensorBoard, and none; also over a resume."""

import json
import os
import signal
import sys
import types

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_mistakes import assert_refused
from training import LOOP

import train
from engine import boards
from engine.boards import TensorBoard
from errors import UserError
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
    assert_refused(cli(train.main, *command, "wandb"), "log: a list is expected: --log '[wandb]'")
    assert not (tmp_path / "out").exists()
    pytest.importorskip("mlflow")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'file'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert_refused(cli(train.main, *command, "[mlflow]"), "--log mlflow: cannot be opened (")


class Broken(TensorBoard):
    """A board whose server goes away."""

    def figures(self, step, figures):
        if step > 1:
            raise ConnectionError("the server is gone")


@pytest.mark.slow
def test_a_board_that_fails_does_not_end_the_run(tiny, tmp_path, cli, monkeypatch):
    monkeypatch.setitem(boards.BOARDS, "tensorboard", Broken)
    code, _, error = cli(train.main, *LOOP, "--data.root", tiny, "--out", tmp_path / "out")
    assert (
        code == 0 and error.count("note: Broken failed and gets nothing more until the run resumes (the server is gone)") == 1
    )
    lines = [json.loads(text) for text in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.slow
def test_boards_take_names_of_any_class_and_know_whether_a_run_has_finished(stores, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    for finished, status in ((True, "FINISHED"), (False, "KILLED")):
        board = boards.MLflow(tmp_path, 0, {})
        board.figures(3, {"labels/precision/traffic light (red), R&D's": 0.5})
        board.close(finished)
        run = mlflow.MlflowClient().get_run(board.run)
        assert run.info.status == status and run.data.metrics == {"labels/precision/traffic light _red__ R_D_s": 0.5}


def test_wandb_gets_figures_pictures_and_the_end(tmp_path, monkeypatch):
    sent = []

    class Run:
        id = "one"
        log = staticmethod(lambda figures, step: sent.append((figures, step)))
        finish = staticmethod(lambda exit_code: sent.append(exit_code))

    stand_in = types.SimpleNamespace(init=lambda **how: Run, Settings=lambda **how: None, Image=lambda picture: picture.size)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    board = boards.Wandb(tmp_path, 0, {})
    board.figures(2, {"loss": 1.5})
    board.picture(2, "pictures", Image.new("RGB", (4, 3)))
    board.close(finished=False)
    assert sent == [({"loss": 1.5}, 2), ({"pictures": (4, 3)}, 2), 1]


def test_a_board_that_cannot_be_opened_closes_the_others(stores, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb: the package is missing"):
        boards.open_boards(("mlflow", "wandb"), tmp_path, 0, {})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "KILLED"
