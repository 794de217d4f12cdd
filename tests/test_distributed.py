"""Several processes (gloo, CPU) train and count like one process. Also tests what happens when one process dies."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import HEIGHT, REPOSITORY, WIDTH
from PIL import Image
from training import BLPSEG, LOOP, UR

from datasets.files import read_label
from engine.distributed import items_of_shard

pytestmark = pytest.mark.slow


def launch(processes, *command, restarts=0, **environment):
    """Runs a Python file under torchrun on a free port, or without torchrun for one process."""
    python = [sys.executable]
    if processes > 1:
        run = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--max-restarts", str(restarts)]
        python += [*run, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run(
        [*python, *map(str, command)], capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300
    )


METHODS = {
    # Rounding may switch a ReLU at its kink. At a higher rate, its weights would then differ by more than the tolerance.
    "cc4s": [*UR, "--method.consistency", "30", "--train.lr", "0.001"],
    "blpseg": BLPSEG,
    "peers": [
        "--method.network",
        "baseline",
        "--method.gated_crf",
        "0.1",
        "--method.entropy",
        "0.1",
        "--method.tree_energy",
        "0.4",
    ],
    "dmpls": ["--method.name", "dmpls"],
}


def steady(root, out, method="cc4s"):
    """The command of a training with 6 images per step. The images have different numbers of labelled pixels."""
    flags = ["--train.batch_size", "6", "--out", out, "--data.root", root]
    return [REPOSITORY / "tests/steady.py", *LOOP, *METHODS[method], *flags]


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory):
    """A steady run in one process."""
    out = tmp_path_factory.mktemp("alone")
    done = launch(1, *steady(tiny, out))
    assert done.returncode == 0, done.stderr
    return out


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run, single, weights=1e-5, losses=1e-5):
    got, want = (torch.load(folder / "last.pt", weights_only=True)["method"] for folder in (run, single))
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=weights, atol=weights)
    assert len(lines(run)) == len(lines(single))
    for ours, theirs in zip(lines(run), lines(single), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # Rounding of the weights may change the class of a pixel between two classes, or the side of a ReLU.
            tolerance = 1e-3 if key.startswith("val_") else 1e-6
            relative = 2e-3 if key.startswith("gradient/") else losses
            assert ours[key] == (None if value is None else pytest.approx(value, rel=relative, abs=tolerance)), key


def test_three_processes_train_like_one_process(tiny, single, tmp_path):
    """Other tests train with two processes, which fail or are stopped."""
    done = launch(3, *steady(tiny, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", single)
    assert json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["processes"] == 3


def test_blpseg_trains_on_two_processes_like_on_one(tiny, tmp_path):
    for processes in (1, 2):
        done = launch(processes, *steady(tiny, tmp_path / str(processes), "blpseg"))
        assert done.returncode == 0, done.stderr
    # The rate is small: with frozen batch norm, a larger rate diverges, and local aggregation amplifies rounding.
    assert_same_training(tmp_path / "2", tmp_path / "1", weights=1e-6, losses=1e-4)


@pytest.mark.parametrize("method", ["peers", "dmpls"])
def test_the_peers_train_on_two_processes_like_on_one(method, tiny, tmp_path):
    for processes in (1, 2):
        done = launch(processes, *steady(tiny, tmp_path / str(processes), method), "--train.lr", "0.001")
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1", weights=1e-5, losses=1e-4)


def test_processes_validate_the_weights_that_are_saved(tiny, tmp_path):
    """On a CPU, each process has seen different images, so the running statistics of batch norm differ."""
    out = tmp_path / "run"
    flags = [*UR, *LOOP, "--train.batch_size", "4", "--data.root", tiny, "--data.val_split", "train"]
    flags += ["--train.lr", "0.05", "--train.steps", "6", "--train.val_steps", "6"]  # enough to predict several classes
    done = launch(2, REPOSITORY / "train.py", *flags, "--out", out)
    assert done.returncode == 0, done.stderr
    flags = ["--data.root", tiny, "--data.split", "train", "--run.precision", "fp32", "--out", tmp_path / "evaluation"]
    done = launch(1, REPOSITORY / "evaluate.py", "--checkpoint", out / "last.pt", *flags)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert lines(out)[-1]["val_pixel_accuracy"] == pytest.approx(scores["pixel_accuracy"], abs=1e-6)


def test_a_dying_process_ends_the_others_and_its_error_comes_first(tiny, tmp_path):
    done = launch(2, *steady(tiny, tmp_path / "run"), STEADY_DIE=str(tmp_path / "died"))
    assert done.returncode != 0 and time.time() - float((tmp_path / "died").read_text()) < 30
    tracebacks = [line for line in done.stderr.splitlines() if "Error" in line]
    assert "rank 1 gives up" in tracebacks[0], done.stderr


def test_a_signal_to_one_process_stops_all_and_the_run_can_resume(tiny, single, tmp_path):
    done = launch(2, *steady(tiny, tmp_path / "run"), STEADY_STOP="1")
    assert done.returncode != 0
    assert "stopped by SIGTERM: rerun the same command to resume" in done.stderr and "best val mIoU" not in done.stdout
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 3
    assert launch(2, *steady(tiny, tmp_path / "run")).returncode == 0
    assert_same_training(tmp_path / "run", single)


def test_a_run_that_torchrun_restarts_resumes_from_the_checkpoint(tiny, single, tmp_path):
    done = launch(2, *steady(tiny, tmp_path / "run"), restarts=1, STEADY_DIE=str(tmp_path / "died"))
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", single)
    assert [session["first_step"] for session in json.loads((tmp_path / "run/run.json").read_text())["sessions"]] == [0, 2]


@pytest.mark.parametrize("processes", [2, 3])
def test_evaluation_with_many_processes_equals_one_process(processes, checkpoints, root, tmp_path):
    turned = root / "JPEGImages/demo_0005.jpg", root / "SegmentationClass/demo_0005.png"
    for file in turned:  # one group has images of two sizes
        with Image.open(file) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(file)
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", root, "--data.split", "train", "--workers", "0"]
    arguments += ["--scribbles", "none"]
    for count, name in ((1, "one"), (processes, "many")):
        done = launch(count, REPOSITORY / "evaluate.py", *arguments, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    one, many = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "many"))
    assert np.sum(one["confusion_matrix"]) == 8 * HEIGHT * WIDTH, "eight images, each counted once"
    for scores in (one, many):
        del scores["conditions"]
    assert one == many
    one, many = (picture_sizes(tmp_path / name / "report.html") for name in ("one", "many"))
    assert one and one == many, "the report shows images of all processes"


def picture_sizes(page):
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page.read_text())
    return [Image.open(BytesIO(base64.b64decode(picture))).size for picture in pictures]


def test_the_shards_of_all_processes_hold_every_item_once(monkeypatch):
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        parts += items_of_shard(list(range(8)), "1/1")
        assert items_of_shard(list(range(8)), "2/4") == [1, 5], "a shard from the command line is not divided again"
    assert sorted(parts) == list(range(8))


def test_one_bad_image_does_not_stop_the_other_processes(root, checkpoints, tmp_path):
    (root / "JPEGImages/demo_0000.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", root / "JPEGImages", "--out", out]
    done = launch(2, REPOSITORY / "predict.py", *arguments)
    assert done.returncode != 0 and "failed: " in done.stderr and "demo_0000.jpg" in done.stderr
    assert len(list(out.glob("*.png"))) == 10, "all images but the bad one"


def test_a_stage_2_script_divides_its_preparations_among_processes(tiny, single, tmp_path):
    launched = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node 2"
    paths = {"DATA_ROOT": tiny, "SUPERPIXELS": tmp_path / "superpixels", "PSEUDO_LABELS": tmp_path / "labels"}
    paths |= {
        "LABELS_FROM": single / "best.pt",
        "PRESET": "fast",
        "INIT": single / "best.pt",
        "OUT": tmp_path / "run",
        "LAUNCH": launched,
        "OMP_NUM_THREADS": 1,
    }
    done = subprocess.run(
        ["sh", REPOSITORY / "train_seg_UR_stage2.sh", *UR, *LOOP, "--train.batch_size", "4"],
        env=os.environ | {name: str(value) for name, value in paths.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("superpixels/map", "labels"):
        assert len(list((tmp_path / kind).glob("*.png"))) == 8
    assert done.stdout.count("4 written, 0 skipped") == 2, "superpixels, by each process"
    assert done.stdout.count("4 images, ") == 2, "pseudo-labels"
    shares = json.loads((tmp_path / "labels/shares.json").read_text())
    labels = np.stack([read_label(path) for path in sorted((tmp_path / "labels").glob("*.png"))])
    assert shares["labelled_share"] == pytest.approx((labels != 255).mean()) and "precision_of_class" in shares
    assert json.loads((tmp_path / "run/run.json").read_text())["sessions"][0]["processes"] == 2
