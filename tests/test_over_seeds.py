"""A table of scores over seeds: means, standard errors, differences within each seed."""

import json

import pytest
from test_mistakes import assert_refused

from tools import over_seeds


def evaluated(folder, miou):
    (folder / "evaluation").mkdir(parents=True)
    (folder / "best.pt").touch()
    data = {"root": "data", "labels": "masks", "split": "val"}
    conditions = {"data": data, "inference": {}, "checkpoint_sha256": "0"}
    scores = {"conditions": conditions, "miou": miou, "dice": miou / 2, "pixel_accuracy": 1.0, "iou": {}}
    (folder / "evaluation/metrics.json").write_text(json.dumps(scores))


@pytest.fixture
def runs(tmp_path):
    for seed, (control, other) in enumerate([(0.50, 0.53), (0.40, 0.44), (0.60, 0.65)]):
        evaluated(tmp_path / str(seed) / "ur", control)
        evaluated(tmp_path / str(seed) / "ss", other)
    evaluated(tmp_path / "0" / "masks", 0.7)
    (tmp_path / "3" / "ur").mkdir(parents=True)  # a seed that is still in training
    (tmp_path / "3" / "ur" / "best.pt").touch()
    return tmp_path


def test_the_difference_is_taken_within_each_seed(runs, cli):
    code, printed, error = cli(over_seeds.main, runs, "--against", "ur")
    assert code == 0, error
    cells = {
        line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in printed.splitlines()
    }
    assert cells["run"] == ["seed 0", "seed 1", "seed 2", "mean", "minus ur"]
    # By hand: deviations of 50, 40, 60 are 0, -10, 10: sqrt(200 / 2 / 3). Those of 3, 4, 5 are -1, 0, 1: sqrt(2 / 2 / 3).
    assert cells["ur"] == ["50.0", "40.0", "60.0", "50.0 ± 5.8", ""]
    assert cells["ss"] == ["53.0", "44.0", "65.0", "54.0 ± 6.1", "+4.0 ± 0.6"]
    assert cells["masks"] == ["70.0", "-", "-", "70.0", "+20.0"]


def test_another_score_and_no_control(runs, cli):
    code, printed, _ = cli(over_seeds.main, runs, "--score", "dice")
    assert code == 0 and "| ss | 26.5 | 22.0 | 32.5 | 27.0 ± 3.0 |" in printed and "minus" not in printed


def test_mistakes_are_named(runs, cli):
    assert_refused(cli(over_seeds.main, runs, "--against", "baseline"), "--against baseline: choose ")
    assert_refused(cli(over_seeds.main, runs / "0"), "no evaluated run SEED/RUN in it")
