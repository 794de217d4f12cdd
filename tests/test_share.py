"""Shared models: the same logits after the round trip, the card, the Hub, and folders that are refused."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_mistakes import assert_refused

import errors
import evaluate
import predict
from engine.checkpoint import load_model, read_checkpoint
from engine.shared import weights_file
from tools import share


@pytest.fixture(scope="module")
def originals(checkpoints, tmp_path_factory, tiny):
    """A run folder with a checkpoint, its evaluation and records of a training: ur. The model shared from it: given."""
    folder = tmp_path_factory.mktemp("originals")
    run = folder / "ur"
    run.mkdir()
    shutil.copy(checkpoints / "seven.pt", run / "best.pt")
    Image.new("RGB", (40, 30)).save(run / "pictures.png")
    command = "python train.py --out runs/ur --data.root ../../home/ann/voc --data.labels '[/home/ann/a, ~/data/b]'"
    session = {"command": command, "commit": "abc123", "device": "cpu", "processes": 1, "first_step": 0}
    (run / "run.json").write_text(json.dumps({"sessions": [session]}))
    flags = ["--checkpoint", run / "best.pt", "--data.root", tiny, "--out", run / "evaluation", "--workers", "0"]
    for main, arguments in ((evaluate.main, flags), (share.main, [run, "--out", folder / "given", "--license", "mit"])):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["command", *map(str, arguments)])
            errors.run(main)
        assert not ended.value.code
    return folder


@pytest.fixture
def trained(originals, tmp_path):
    """A copy of the run folder that a test may damage."""
    return shutil.copytree(originals / "ur", tmp_path / "ur")


@pytest.fixture
def shared_model(originals, tmp_path):
    """A copy of the shared model that a test may damage."""
    return shutil.copytree(originals / "given", tmp_path / "shared")


def test_a_shared_model_has_the_same_logits(trained, shared_model):
    images = torch.randn(2, 3, 97, 65)
    with torch.inference_mode():
        before, after = (load_model(path).predict(images) for path in (trained / "best.pt", shared_model))
    assert torch.equal(before, after)
    assert load_model(str(shared_model)).classes == load_model(trained / "best.pt").classes
    content = read_checkpoint(shared_model)
    assert content["config"]["model"] == read_checkpoint(trained / "best.pt")["config"]["model"]
    assert not [file for file in shared_model.iterdir() if file.suffix in (".pt", ".bin")]


def test_evaluate_and_predict_read_a_shared_folder(trained, shared_model, tiny, tmp_path, cli):
    flags = ["--data.root", tiny, "--out", tmp_path / "again", "--workers", "0"]
    code, _, error = cli(evaluate.main, "--checkpoint", shared_model, *flags)
    assert code == 0, error
    first, again = (
        json.loads((folder / "metrics.json").read_text()) for folder in (trained / "evaluation", tmp_path / "again")
    )
    assert first["confusion_matrix"] == again["confusion_matrix"]
    flags = ["--images", tiny / "JPEGImages", "--out", tmp_path / "predicted"]
    code, _, error = cli(predict.main, "--checkpoint", shared_model, *flags)
    assert code == 0, error
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 11


def test_the_card_has_scores_command_classes_and_no_path_of_the_machine(originals, trained, shared_model):
    text = (shared_model / "README.md").read_text()
    scores = json.loads((trained / "evaluation/metrics.json").read_text())
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "mit" and header["pipeline_tag"] == "image-segmentation"
    for part in (f"| mIoU | {100 * scores['miou']:.2f} |", "python train.py --out runs/ur", "abc123", "disc", "picture.jpg"):
        assert part in text
    assert "runs/ur --data.root voc --data.labels '[a, b]'" in text, "folders of the machine are left out"
    assert str(originals) not in text and str(originals) not in (shared_model / "config.yaml").read_text()
    assert np.asarray(Image.open(shared_model / "picture.jpg")).shape == (30, 40, 3)


class Hub:
    """A stand-in for the Hub: repositories are folders."""

    root: Path

    def create_repo(self, repo_id, exist_ok):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    @classmethod
    def snapshot_download(cls, repo_id, allow_patterns):
        if not (cls.root / repo_id).is_dir():
            raise FileNotFoundError(repo_id)
        out = cls.root / "cache" / repo_id
        for name in allow_patterns:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(cls.root / repo_id / name, out / name)
        return str(out)


def test_a_model_goes_to_the_hub_and_comes_back(trained, tmp_path, cli, monkeypatch):
    Hub.root = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub.snapshot_download)
    code, printed, error = cli(share.main, trained, "--out", tmp_path / "given", "--push", "someone/ur")
    assert code == 0, error
    assert "uploaded: hf:someone/ur" in printed and "--checkpoint hf:someone/ur" in (tmp_path / "given/README.md").read_text()
    images = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        assert torch.equal(load_model("hf:someone/ur").predict(images), load_model(trained / "best.pt").predict(images))
    command = ["--checkpoint", "hf:someone/missing", "--images", tmp_path, "--out", tmp_path / "predicted"]
    assert_refused(cli(predict.main, *command), "hf:someone/missing: not downloaded (FileNotFoundError): check the name")

    def fails(self, repo_id, exist_ok):
        raise ConnectionError("no network")

    monkeypatch.setattr(Hub, "create_repo", fails)
    answer = cli(share.main, trained, "--out", tmp_path / "other", "--push", "someone/ur")
    assert_refused(answer, "--push someone/ur: not uploaded (ConnectionError: no network)")
    assert (tmp_path / "other/model.safetensors").is_file() and f"hf upload someone/ur {tmp_path / 'other'}" in answer[2]


def change(folder, part, **settings):
    content = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(content | {part: content[part] | settings}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "classes.txt").unlink(), "classes.txt is missing"),
        (lambda folder: (folder / "extra.pkl").write_bytes(b"x"), "holds no pickle, but extra.pkl may be one"),
        (lambda folder: torch.save({"a": 1}, folder / "model.safetensors"), "not a readable shared model (SafetensorError)"),
        (lambda folder: (folder / "config.yaml").write_text("architectures: [X]"), "not of this project"),
        (lambda folder: (folder / "config.yaml").write_text("a: ["), "not a readable shared model"),
        (lambda folder: (folder / "config.yaml").write_text("[" * 5000), "not a readable shared model (RecursionError)"),
        (lambda folder: change(folder, "model", backbone=7), "Expected a <class 'str'>. Got value: 7"),
        (lambda folder: change(folder, "model", decoder="foo"), "Got value: foo"),
        (lambda folder: change(folder, "model", backbone="timm:local-dir:x"), "timm:local-dir:x"),
        (lambda folder: change(folder, "method", shrink="x"), "method.shrink"),
        (lambda folder: change(folder, "method", name="other"), "method.name other is not one of cc4s, "),
        (lambda folder: change(folder, "method", later=1), "(written by version 0.2.0)"),
    ],
)
def test_a_folder_of_another_project_or_with_a_pickle_is_refused(shared_model, spoil, message, tmp_path, cli):
    spoil(shared_model)
    command = ["--checkpoint", shared_model, "--images", tmp_path, "--out", tmp_path / "predicted"]
    assert_refused(cli(predict.main, *command), message)


def test_scores_of_other_weights_are_refused_and_a_model_without_records_has_a_short_card(trained, tmp_path, cli):
    other = torch.load(trained / "best.pt", weights_only=True)
    torch.save(other | {"version": "x"}, trained / "best.pt")
    answer = cli(share.main, trained, "--out", tmp_path / "given")
    assert_refused(answer, f"{trained / 'evaluation'} is of another checkpoint than")
    shutil.rmtree(trained / "evaluation")
    (trained / "run.json").write_text('{"sessions": []}')
    (trained / "pictures.png").write_bytes(b"damaged")
    code, _, error = cli(share.main, trained, "--out", tmp_path / "given")
    assert code == 0 and "the card has no picture" in error
    text = (tmp_path / "given/README.md").read_text()
    assert "Not evaluated." in text and "## Training" not in text


def test_wrong_folders_are_named(trained, shared_model, tmp_path, cli):
    assert_refused(cli(share.main, tmp_path, "--out", tmp_path / "x"), "holds no best.pt")
    assert_refused(cli(share.main, trained, "--out", shared_model), "exists: choose another --out")
    command = ["--checkpoint", trained, "--images", tmp_path, "--out", tmp_path / "predicted"]
    assert_refused(cli(predict.main, *command), f"name a file in the folder, such as {trained / 'best.pt'}")
    assert weights_file(trained / "best.pt") == trained / "best.pt"
