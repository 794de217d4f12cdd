"""Scores of volumes: slices are joined by their names, Dice and HD95 equal plain loops, and evaluate.py reports them."""

import json
import math
from itertools import product

import numpy as np
import pytest
from test_mistakes import assert_refused

import evaluate
from datasets import open_index
from datasets.files import write_label
from datasets.index import group_names
from engine.volumes import Volumes
from errors import UserError
from tools import compare, splits

CLASSES = ("background", "a", "b")


def volumes_of(predictions, truths, pattern=r"p\d+"):
    names = [f"p{volume}_s{number}" for volume in range(len(truths)) for number in range(len(truths[volume]))]
    volumes = Volumes(pattern, names)
    for name in reversed(names):  # in any order
        volume, number = (int(part[1:]) for part in name.split("_"))
        volumes.update(name, predictions[volume][number], truths[volume][number])
    return volumes


def surface(mask):
    """Voxels of a mask (D, H, W) with one of their six neighbours outside the mask or the volume."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in product(range(3), (-1, 1)):
            beside = voxel.copy()
            beside[axis] += step
            if not (0 <= beside[axis] < mask.shape[axis]) or not mask[tuple(beside)]:
                found.append(voxel)
                break
    return np.array(found)


def naive_hd95(one, other, spacing):
    distances = []
    for here, there in ((surface(one), surface(other)), (surface(other), surface(one))):
        for voxel in here:
            distances.append(min(math.dist(voxel * spacing, target * spacing) for target in there))
    return np.percentile(distances, 95)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.5, 1.25)])
def test_dice_and_hd95_equal_plain_loops(spacing):
    rng = np.random.default_rng(0)
    truths = [np.kron(rng.integers(0, 3, (2, 3, 4)), np.ones((2, 3, 3), int)) for _ in range(3)]
    predictions = [np.where(rng.random(truth.shape) < 0.1, rng.integers(0, 3, truth.shape), truth) for truth in truths]
    truths[1][0, :2] = 255
    scores = volumes_of(predictions, truths).scores(CLASSES, dict.fromkeys(["p0", "p1", "p2"], spacing))
    assert list(scores["per_volume"]) == ["p0", "p1", "p2"]
    for number, name in ((1, "a"), (2, "b")):
        dice, distance = [], []
        for prediction, truth in zip(predictions, truths, strict=True):
            one, other = (prediction == number) & (truth != 255), truth == number
            dice.append(2 * (one & other).sum() / (one.sum() + other.sum()))
            distance.append(naive_hd95(one, other, np.array(spacing)))
        for kind, wanted in (("dice", dice), ("hd95", distance)):
            found = scores[kind][name]
            assert found["mean"] == pytest.approx(np.mean(wanted)) and found["deviation"] == pytest.approx(np.std(wanted))
            assert [scores["per_volume"][f"p{v}"][name][kind] for v in range(3)] == pytest.approx(wanted)
    assert scores["mean_dice"] == pytest.approx(np.mean([scores["dice"][name]["mean"] for name in ("a", "b")]))


def test_classes_that_are_missing_somewhere():
    truth, prediction = np.zeros((3, 2, 6, 6), int), np.zeros((3, 2, 6, 6), int)
    truth[0, :, :3] = prediction[0, :, :3] = 1  # found
    truth[1, :, :3] = 1  # missed; in volume 2, truth and prediction have no class 1, and nowhere a class 2
    scores = volumes_of(prediction, truth).scores(CLASSES, {})
    assert [scores["per_volume"][f"p{volume}"]["a"]["dice"] for volume in range(3)] == [1, 0, None]
    assert scores["dice"]["a"] == {"mean": 0.5, "deviation": 0.5, "volumes": 2}
    assert scores["hd95"]["a"] == {"mean": 0.0, "deviation": 0.0, "volumes": 1}
    assert scores["dice"]["b"] == {"mean": None, "deviation": None, "volumes": 0}
    assert scores["mean_dice"] == 0.5 and scores["mean_hd95"] == 0


def test_slices_are_stacked_in_the_order_of_their_numbers_and_sizes_are_checked(tmp_path):
    names = [f"x/patient1_frame01_slice_{number}" for number in range(12)]
    volumes = Volumes(r"patient\d+_frame\d+", names)
    for number, name in enumerate(names):
        volumes.update(name, np.full((2, 2), number), np.full((2, 2), number))
    assert volumes._stacked("patient1_frame01")[0][:, 0, 0].tolist() == list(range(12))
    files = {name: tmp_path / f"{name}.png" for name in names}
    for number, file in enumerate(files.values()):
        write_label(file, np.zeros((4, 5 if number == 3 else 6), np.uint8))
    with pytest.raises(UserError, match="slices of patient1_frame01 have several sizes"):
        volumes.check_sizes(files)
    for pattern, message in (("(", "not a regular expression"), ("scan", "does not match x/patient1")):
        with pytest.raises(UserError, match=message):
            Volumes(pattern, names)


@pytest.mark.slow
def test_evaluate_scores_volumes_and_compare_shows_them(checkpoints, tiny, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny]
    assert_refused(cli(evaluate.main, *arguments, "--spacing", "[5, 1, 1]"), "--spacing requires --volumes")
    assert_refused(cli(evaluate.main, *arguments, "--volumes", "scan"), "--volumes scan: does not match demo_0008")
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    (run / "best.pt").write_bytes((checkpoints / "seven.pt").read_bytes())
    out, masks = run / "evaluation", tmp_path / "masks"
    flags = ["--volumes", r"demo_00\d", "--spacing", "[5, 1, 1]", "--out", out, "--save_masks", masks]
    code, printed, error = cli(evaluate.main, *arguments, *flags)
    assert code == 0, error
    assert "2 volumes" in printed and "HD95, mm" in printed
    found = json.loads((out / "metrics.json").read_text())
    assert set(found["volumes"]["per_volume"]) == {"demo_000", "demo_001"}
    index = open_index(tiny, "val", "SegmentationClass")
    wanted = Volumes(r"demo_00\d", index.names)
    for name, file in zip(index.names, index.label_files, strict=True):
        wanted.update(name, evaluate.read_label_or_none(masks / f"{name}.png"), evaluate.read_label_or_none(file))
    mm = dict.fromkeys(("demo_000", "demo_001"), (5, 1, 1))
    assert wanted.scores(index.classes, mm) | {"unit": "mm"} == found["volumes"]
    assert "3-D Dice" in (out / "report.html").read_text()
    code, printed, error = cli(compare.main, tmp_path / "runs", "--out", tmp_path / "comparison.png")
    assert code == 0 and "3-D Dice" in printed, error


def test_the_spacing_of_each_volume_comes_from_the_data_set(tmp_path):
    volumes = Volumes(r"p\d+", ["p1_s0", "p2_s0"])
    assert volumes.spacing(tmp_path, None) == {} and volumes.spacing(tmp_path, (1, 2, 3)) == {"p1": (1, 2, 3), "p2": (1, 2, 3)}
    for content, message in (
        ('{"p1": [9, 1, 1]}', "volume 'p2' is missing"),
        ('{"p1": [9, 1], "p2": [9, 1, 1]}', "in mm is expected"),
        ("{", "in mm is expected"),
    ):
        (tmp_path / "spacing.json").write_text(content)
        with pytest.raises(UserError, match=message):
            volumes.spacing(tmp_path, None)
    (tmp_path / "spacing.json").write_text('{"p1": [9, 1.5, 1], "p2": [8, 1, 1], "p3": [7, 1, 1]}')
    assert volumes.spacing(tmp_path, None) == {"p1": (9, 1.5, 1), "p2": (8, 1, 1)}


def test_folds_hold_each_patient_out_once(tiny, tmp_path, cli):
    names = [f"patient{patient:03d}_slice_{number}" for patient in range(1, 101) for number in range(2)]
    parts = splits.folds(group_names(names[::-1], r"patient\d+", "--groups"), 5)
    for number, part in enumerate(parts):  # WSL4MIS: patients 1 to 20 are the first fold
        assert {int(name[7:10]) for name in part} == set(range(20 * number + 1, 20 * number + 21)) and len(part) == 40
    code, printed, error = cli(splits.main, "folds", tiny, "--count", "3", "--out", tmp_path / "lists")
    assert code == 0 and "fold3_val.txt" in printed, error
    lists = {file.stem: file.read_text().split() for file in (tmp_path / "lists").glob("*.txt")}
    everything = sorted(name for number in (1, 2, 3) for name in lists[f"fold{number}_val"])
    assert everything == sorted(open_index(tiny, "train").names + open_index(tiny, "val").names)
    assert all(sorted(lists[f"fold{n}_train"] + lists[f"fold{n}_val"]) == everything for n in (1, 2, 3))
    refused = cli(splits.main, "folds", tiny, "--count", "99", "--out", tmp_path / "lists")
    assert_refused(refused, "--count 99: at least 2, and at most the 11 groups")
