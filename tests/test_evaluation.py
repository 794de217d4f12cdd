"""evaluate.py as a user runs it: several processes, and what metrics.json says."""

import json
import os
import subprocess
import sys

import numpy as np
from conftest import REPOSITORY

import evaluate


def test_two_processes_count_what_one_counts(checkpoints, tiny, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--run.workers", "0"]
    assert cli(evaluate.main, *arguments, "--out", tmp_path / "one")[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    command = [*launch, REPOSITORY / "evaluate.py", *arguments, "--out", tmp_path / "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert np.sum(one["confusion_matrix"]) == 3 * 128 * 160, "three images, none twice"
    # One thread sums in another order than two: a pixel on the edge between two classes may change sides.
    assert np.abs(np.subtract(one["confusion_matrix"], two["confusion_matrix"])).sum() <= 10
    assert abs(one["boundary_iou"] - two["boundary_iou"]) < 1e-3


def test_metrics_say_what_they_depend_on(checkpoints, tiny, tmp_path, cli):
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
