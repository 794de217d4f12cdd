"""The interface of methods/base.py, tested with the method of tests/student.py: training, resuming, processes, evaluation."""

import json
import signal

import pytest
import student
import torch
from test_distributed import assert_same_training, launch
from training import LOOP

import evaluate
import methods
import train
from config import Config, DataConfig, TrainConfig
from datasets import open_index
from datasets.segmentation import LABELLED_STREAM, SegmentationDataset
from engine.checkpoint import load_model
from engine.loading import augmentation
from engine.preparation import build_optimizer
from errors import UserError
from methods.cc4s import CC4SConfig

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def register_student(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "student", student.Student)
    monkeypatch.setitem(methods.SETTINGS, "student", student.StudentConfig)


@pytest.fixture
def few_labels(root):
    """A data set with masks for two images. The other six images have tags, but neither masks nor scribbles."""
    lists = root / "ImageSets/Segmentation"
    names = (lists / "train.txt").read_text().split()
    (lists / "labelled.txt").write_text("\n".join(names[:2]))
    (lists / "unlabelled.txt").write_text("\n".join(names[2:]))
    index = open_index(root, "unlabelled", "SegmentationClass")
    dataset = SegmentationDataset(index)
    tags = {name: [index.classes[1 + int(n)] for n in dataset[i]["tags"].nonzero()] for i, name in enumerate(index.names)}
    (root / "tags.json").write_text(json.dumps(tags))
    (root / "SegmentationClass/scribbles.json").write_text("{}")
    for name in names[2:]:
        (root / "SegmentationClass" / f"{name}.png").unlink()
        (root / "scribbles" / f"{name}.png").unlink()
    return root


@pytest.fixture
def flags(few_labels, checkpoints):
    return [
        "--method.name", "student", "--data.root", few_labels, "--data.train_split", "unlabelled", "--data.labelled.split",
        "labelled", "--data.tags", "file", "--teacher", checkpoints / "seven.pt", "--train.head_lr_factor", "10",
        "--data.jitter", "0.8", "--data.grey", "0.5",
    ]  # fmt: skip


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_student_run_resumes_bit_for_bit(flags, checkpoints, cli, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    command = [student.__file__, *LOOP, *flags]
    killed = launch(1, *command, "--out", run, STUDENT_KILL="3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 2
    for out in (whole, run):
        done = launch(1, *command, "--out", out)
        assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stdout
    got, want = (torch.load(out / "last.pt", weights_only=True) for out in (run, whole))
    assert got["method"].keys() == want["method"].keys()
    assert all(torch.equal(got["method"][key], value) for key, value in want["method"].items())
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()

    assert not any(key.startswith("teacher") for key in want["method"]), "a checkpoint does not hold the teacher"
    network, average = (want["method"][f"{name}classifier.1.weight"] for name in ("network.", "average.module."))
    assert not torch.equal(network, average), "the average differs from the weights"
    losses = [line for line in metrics(whole) if "loss" in line]
    assert [line["teacher"] > 0 for line in losses] == [False, False, True, True]
    assert len({tuple(line) for line in losses}) == 1, "every step has the same terms"
    record = json.loads((whole / "run.json").read_text())
    assert record["teacher"].keys() == {"seven.pt"} and record["data"]["labelled"]["images"] == 2
    assert record["labelled"].keys() == {"scribbles.json"}, "the record beside the labelled images' labels"

    checkpoints_teacher = checkpoints / "seven.pt"
    hidden = checkpoints_teacher.rename(tmp_path / "elsewhere.pt")
    try:
        code, _, error = cli(evaluate.main, "--checkpoint", whole / "best.pt", "--data.root", flags[3], "--out", tmp_path / "e")
        assert code == 0, "evaluation needs no teacher: " + error
        logits = load_model(whole / "best.pt").predict(torch.zeros(1, 3, 33, 33))
        assert logits.shape == (1, 7, 33, 33)
    finally:
        hidden.rename(checkpoints_teacher)


def test_two_processes_train_like_one_process(flags, tmp_path):
    command = [student.__file__, "steady", *LOOP, *flags, "--train.batch_size", "4", "--train.lr", "0.001"]
    for processes in (1, 2):
        done = launch(processes, *command, "--out", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1")


def test_training_does_not_change_the_teacher(flags, checkpoints, cli, tmp_path, monkeypatch):
    seen = []
    original = student.Student.after_step

    def watch(self):
        original(self)
        seen.append((self.teacher.training, [weight.clone() for weight in self.teacher.state_dict().values()]))
        assert all(weight.grad is None and not weight.requires_grad for weight in self.teacher.parameters())
        assert self.teacher not in self.modules()

    monkeypatch.setattr(student.Student, "after_step", watch)
    code, _, error = cli(train.main, *LOOP, *flags, "--out", tmp_path / "run")
    assert code == 0, error
    given = load_model(checkpoints / "seven.pt").state_dict().values()
    assert len(seen) == 4, "a record for each step"
    for training, weights in seen:
        assert not training
        assert all(torch.equal(now, before) for now, before in zip(weights, given, strict=True))


def test_the_weight_average_starts_from_the_loaded_weights(flags, checkpoints, cli, tmp_path, monkeypatch):
    """The average must not start from the random weights before the backbone is loaded."""
    starts = []
    original = student.Student.begin_training

    def watch(self, teacher):
        original(self, teacher)
        starts.append((self.network.state_dict(), self.average.module.state_dict()))
        raise UserError("far enough")

    monkeypatch.setattr(student.Student, "begin_training", watch)
    weights = tmp_path / "resnet18.pt"
    backbone = load_model(checkpoints / "seven.pt").network.backbone
    torch.save({key: torch.ones_like(value) for key, value in backbone.state_dict().items()}, weights)
    cli(train.main, *LOOP, *flags, "--model.weights", weights, "--out", tmp_path / "run")
    network, average = starts[0]
    assert (network["backbone.layer4.1.conv2.weight"] == 1).all()
    assert all(torch.equal(average[key], value) for key, value in network.items())


def test_seed_epoch_and_position_decide_the_labelled_image(few_labels):
    data = DataConfig(root=str(few_labels), crop=33, blur=1, jitter=1, grey=1)
    index, split = open_index(few_labels, "unlabelled"), open_index(few_labels, "labelled", "SegmentationClass")

    def training(seed):
        labelled = SegmentationDataset(split, augmentation(data, "labelled"), seed=seed, stream=LABELLED_STREAM)
        return SegmentationDataset(index, augmentation(data), seed=seed, labelled=labelled)

    keys = [(epoch, position) for epoch in range(4) for position in range(6)]
    first, same_seed, other_seed = training(0), training(0), training(1)
    same = [torch.equal(first[key]["labelled"]["image"], same_seed[key]["labelled"]["image"]) for key in keys]
    differ = [not torch.equal(first[key]["labelled"]["image"], other_seed[key]["labelled"]["image"]) for key in keys]
    assert all(same) and all(differ)
    drawn = [first.sources(key)[1] for key in keys]
    assert {position for _, position in drawn} == {0, 1} and {index.names for index, _ in drawn} == {split.names}
    for key in keys:
        item = first[key]
        assert "label" not in item and item["labelled"]["label"].shape == (33, 33)
        grey = [(image == image[:1]).all() for image in (item["image"], item["labelled"]["image"])]
        assert grey == [True, False], "only images of the main stream change their colours"


def test_the_backbone_has_its_own_learning_rate():
    settings = TrainConfig(lr=0.1, lr_factor=0.5, head_lr_factor=10)
    method = methods.build_method(student.StudentConfig(), Config(CC4SConfig()).model, 3)
    first, second = build_optimizer(method, settings).param_groups
    assert (first["lr"], second["lr"]) == (0.05, 0.5)
    assert {*first["params"]} == {*method.network.backbone.parameters()}
    assert {*second["params"]} == {*method.network.parameters()} - {*first["params"]}, "no weight of the average"


@pytest.mark.parametrize(
    "changes, wanted",
    [
        (["--teacher", None], "method student needs a teacher: name a checkpoint by --teacher"),
        (["--data.labelled.split", None], "method student reads labelled images: name their list by --data.labelled.split"),
        (["--data.labelled.split", "nowhere"], "nowhere.txt not found"),
        (
            [
                "--method.name",
                "cc4s",
                "--data.tags",
                "labels",
                "--data.train_split",
                "val",
                "--data.labels",
                "SegmentationClass",
            ],
            "takes no teacher",
        ),
        (["--teacher", "three.pt"], "three.pt: trained on 3 classes"),
    ],
)
def test_missing_or_wrong_inputs_of_a_method_give_one_error_line(flags, checkpoints, cli, tmp_path, changes, wanted):
    for flag, value in zip(changes[::2], changes[1::2], strict=True):
        place = flags.index(flag) if flag in flags else len(flags)
        new = [] if value is None else [flag, checkpoints / value if value == "three.pt" else value]
        flags = flags[:place] + new + flags[place + 2 :]
    code, _, error = cli(train.main, *LOOP, *flags, "--out", tmp_path / "run")
    assert code == 2 and wanted in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()
