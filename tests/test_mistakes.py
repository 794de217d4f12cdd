"""Mistakes of users: one line on standard error, exit code 2, no file written. Also failures and bad inputs."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import HEIGHT, REPOSITORY, WIDTH
from PIL import Image
from test_chain import SMALL

import evaluate
import predict
import train
from datasets.files import read_label, write_label
from errors import Failure, UserError, run
from methods.cc4s import CC4S
from tools import export, scribbles
from tools.batch import BatchConfig, process


def assert_refused(result, message):
    code, _, error = result
    assert code == 2
    assert message in error
    lines = [line for line in error.splitlines() if line.strip() and "checking" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), error


TRAINING_MISTAKES = {
    "missing root": (lambda root: shutil.rmtree(root), [], "not found"),
    "empty split": (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text(""), [], "split is empty"),
    "id outside the classes": (
        lambda root: Image.fromarray(np.full((HEIGHT, WIDTH), 77, np.uint8)).save(root / "scribbles/demo_0001.png"),
        [],
        "label id 77 is outside",
    ),
    "size differs from the image": (
        lambda root: Image.fromarray(np.zeros((10, 10), np.uint8)).save(root / "SegmentationClass/demo_0009.png"),
        [],
        f"demo_0009.png is 10x10, its image {WIDTH}x{HEIGHT}",
    ),
    "unreadable image": (lambda root: (root / "JPEGImages/demo_0002.jpg").write_bytes(b"\xff"), [], "not a readable image"),
    "superpixels missing": (
        lambda root: None,
        ["--config", str(REPOSITORY / "configs/cc4s/ur_stage2.yaml"), *SMALL],
        "tools.superpixels",
    ),
    "unknown key": (lambda root: None, ["--train.step", "3"], "did you mean train.steps?"),
    "unknown method": (lambda root: None, ["--method.name", "magic"], "choose cc4s"),
    "no GPU": (lambda root: None, ["--train.precision", "fp16", "--train.device", "cpu"], "needs a CUDA GPU"),
    "crop and shrink": (
        lambda root: None,
        ["--method.consistency", "1", "--method.view", "random", "--method.shrink", "2", "--data.crop", "73"],
        "choose 65",
    ),
    "batch of one": (
        lambda root: None,
        ["--method.network", "baseline", "--method.soft_entropy", "0", "--train.batch_size", "1"],
        "needs 2 images",
    ),
    "batch does not split": (lambda root: None, ["--train.accumulate", "4"], "does not divide"),
}


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_training_refuses_wrong_data_and_settings(mistake, root, tmp_path, cli):
    damage, flags, message = TRAINING_MISTAKES[mistake]
    damage(root)
    config = ["--config", REPOSITORY / "configs/cc4s/ur.yaml", *SMALL]
    out = tmp_path / "run"
    assert_refused(cli(train.main, *config, "--data.root", root, "--out", out, *flags), message)
    assert not out.exists()


@pytest.mark.parametrize("name, flags, message", [
    ("three.pt", [], "trained on 3 classes, the data has 7"),
    ("garbage.pt", [], "not a readable checkpoint"),
    ("nothing.pt", [], "not found"),
    ("seven.pt", ["--model.backbone", "resnet34"], "another network"),
    ("seven.pt", ["--method.network", "baseline", "--method.soft_entropy", "0"], "another network"),
])  # fmt: skip
def test_training_refuses_a_wrong_init_checkpoint(name, flags, message, checkpoints, tiny, tmp_path, cli):
    config = ["--config", REPOSITORY / "configs/cc4s/ur.yaml", *SMALL]
    out = tmp_path / "run"
    arguments = [*config, "--data.root", tiny, "--out", out, "--init", checkpoints / name, *flags]
    assert_refused(cli(train.main, *arguments), message)
    assert not out.exists()


def test_the_error_for_a_missing_label_folder_names_its_path(root, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(root.parent)
    shutil.rmtree(root / "scribbles")
    config = [
        "--config",
        REPOSITORY / "configs/cc4s/baseline.yaml",
        *SMALL,
        "--data.root",
        root.name,
        "--out",
        tmp_path / "run",
    ]
    for labels in (f"{root.name}/scribbles", "scribbles"):  # as a path, like in the scripts, and as a name
        assert_refused(cli(train.main, *config, "--data.labels", labels), f"label folder {root.name}/scribbles not found")


def test_training_does_not_overwrite_unreadable_checkpoints(tiny, tmp_path, cli):
    (tmp_path / "last.pt").write_bytes(b"precious")
    assert_refused(cli(train.main, "--data.root", tiny, "--out", tmp_path), "not a readable checkpoint")
    assert (tmp_path / "last.pt").read_bytes() == b"precious"
    (tmp_path / "last.pt").rename(tmp_path / "best.pt")
    assert_refused(cli(train.main, "--data.root", tiny, "--out", tmp_path), "best.pt without last.pt")
    assert (tmp_path / "best.pt").read_bytes() == b"precious"


@pytest.mark.slow
def test_two_trainings_cannot_use_one_run_folder(tiny, tmp_path, cli):
    hold = "import sys; from pathlib import Path; from engine.run_folder import lock; lock(Path(sys.argv[1])); print(); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    other.stdout.readline()
    config = ["--config", REPOSITORY / "configs/cc4s/baseline.yaml", *SMALL]
    assert_refused(cli(train.main, *config, "--data.root", tiny, "--out", tmp_path), "another process is training in")
    (tmp_path / "last.pt").write_bytes(b"the other training is writing its state")
    assert_refused(cli(train.main, *config, "--data.root", tiny, "--out", tmp_path), "another process is training in")
    other.communicate(b"\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.pt"]


def test_a_file_system_without_locks_gives_one_error_line(monkeypatch, tiny, tmp_path, cli):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    assert_refused(cli(train.main, *SMALL, "--data.root", tiny, "--out", tmp_path), "No locks available: .lock")


def test_a_tool_skips_a_forbidden_file_but_stops_at_a_full_disk(tmp_path, capsys):
    def work(name, number):
        if name == "b":
            raise OSError(number, os.strerror(number), "b.xml")

    def call(number):
        return process(work, {"a": 0, "b": number, "c": 0}, lambda name: False, BatchConfig(workers=1), "work")

    assert call(errno.EACCES) == ([None, None], 1)
    assert "failed: b: b.xml: Permission denied" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        call(errno.ENOSPC)


def fill_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("fill", [fill_a_gpu, lambda: torch.empty(10**16), lambda: np.empty(10**16)])
def test_too_little_memory_gives_one_error_line(cli, fill):
    code, _, stderr = cli(fill)
    assert code == 1 and "--inference.window 465" in stderr and len(stderr.splitlines()) == 1


def test_prediction_continues_after_an_image_that_is_too_large(checkpoints, tiny, tmp_path, cli, monkeypatch):
    def of_small_images(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            fill_a_gpu()
        return predict_image(*arguments)

    calls, predict_image = [], predict.predict_image
    monkeypatch.setattr(predict, "predict_image", of_small_images)
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", tiny, "--split", "val", "--out", tmp_path / "out"]
    code, output, error = cli(predict.main, *arguments)
    assert code == 1 and "2 images" in output
    assert "demo_0009.jpg: too little memory" in error and "--inference.long_side 512" in error


def test_predictions_with_different_averages_are_not_mixed(checkpoints, tiny, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", tiny / "JPEGImages/demo_0000.jpg", "--out", tmp_path]
    assert cli(predict.main, *arguments)[0] == 0
    assert cli(predict.main, *arguments)[0] == 0
    assert_refused(cli(predict.main, *arguments, "--inference.average", "logits"), "made with another inference")


def test_prediction_refuses_a_list_with_another_suffix(checkpoints, tmp_path, cli):
    (tmp_path / "photos.lst").write_text("a.jpg")
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", tmp_path / "photos.lst", "--out", tmp_path / "out"]
    assert_refused(cli(predict.main, *arguments), "neither an image (.jpg")


def test_prediction_of_a_whole_large_image_prints_a_note(checkpoints, tiny, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(CC4S, "large_image", WIDTH * HEIGHT - 1)
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", tiny / "JPEGImages/demo_0000.jpg"]
    assert "goes through the network whole" in cli(predict.main, *arguments, "--out", tmp_path / "whole")[2]
    assert "note" not in cli(predict.main, *arguments, "--inference.window", "65", "--out", tmp_path / "windows")[2]


def test_prediction_reads_a_list_of_images(checkpoints, tiny, tmp_path, cli):
    files = tmp_path / "some.txt"
    listed = [tiny / "JPEGImages/demo_0001.jpg", "beside.jpg", "missing.jpg"]
    shutil.copy(tiny / "JPEGImages/demo_0002.jpg", tmp_path / "beside.jpg")
    files.write_text("\n".join(map(str, listed)))
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", files, "--out", tmp_path / "out"]
    code, _, error = cli(predict.main, *arguments)
    assert code == 1 and "missing.jpg" in error
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["beside.png", "demo_0001.png"]
    files.write_text(str(tiny / "JPEGImages/demo_0001.jpg"))
    assert_refused(cli(predict.main, *arguments), "paths_sha256")
    files.write_text("a/one.jpg\nb/one.jpg\n")
    assert_refused(cli(predict.main, *arguments[:-1], tmp_path / "other"), "would get the same name")
    files.write_text("")
    assert_refused(cli(predict.main, *arguments[:-1], tmp_path / "other"), "one path per line")


@pytest.mark.parametrize("error, code, line", [
    (UserError("no such thing"), 2, "error: no such thing"),
    (UserError("Caught UserError in a worker.\nTraceback ...\nerrors.UserError: a.png is broken"), 2, "error: a.png is broken"),
    (Failure("it broke"), 1, "error: it broke"),
    (OSError(errno.ENOSPC, "No space left on device", "a.pt"), 1, "error: a.pt: No space left on device: free disk space"),
    (PermissionError(errno.EACCES, "Permission denied", "a.png"), 2, "error: a.png: Permission denied"),
    (KeyboardInterrupt(), 130, "interrupted"),
])  # fmt: skip
def test_each_error_gives_one_line_and_its_exit_code(cli, error, code, line):
    def fail():
        raise error

    exit_code, _, stderr = cli(fail)
    assert exit_code == code and stderr.startswith(line) and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("of no file")])
def test_a_bug_keeps_its_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        run(fail)


@pytest.mark.slow
def test_training_continues_after_a_batch_without_scribbles(root, tmp_path, cli):
    for path in (root / "scribbles").glob("*.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(path)
    config = ["--config", REPOSITORY / "configs/cc4s/baseline.yaml", *SMALL]
    assert cli(train.main, *config, "--data.root", root, "--out", tmp_path / "run")[0] == 0
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == first["cross_entropy"] == 0


def test_evaluation_refuses_wrong_input(checkpoints, root, tmp_path, cli):
    out, seven = tmp_path / "evaluation", ["--checkpoint", checkpoints / "seven.pt"]
    common = ["--data.root", root, "--out", out, "--workers", "0"]
    assert_refused(cli(evaluate.main, "--checkpoint", checkpoints / "three.pt", *common), "3 classes")
    assert_refused(cli(evaluate.main, *seven, *common, "--data.split", "tset"), "tset.txt not found")
    assert_refused(cli(evaluate.main, *seven, *common, "--crf_per_scale", "true"), "requires --crf")
    logits_preset = ["--preset", "blpseg", "--crf", "torch", "--crf_per_scale"]
    assert_refused(cli(evaluate.main, *seven, *common, *logits_preset), "give --inference.average probabilities")
    assert_refused(cli(evaluate.main, *seven, *common, "--data.labels", "masks"), "masks not found")
    for path in (root / "SegmentationClass").glob("*.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(path)
    assert_refused(cli(evaluate.main, *seven, *common), "no labelled pixel")
    names = (root / "classes.txt").read_text().split()
    (root / "classes.txt").write_text("\n".join(names[::-1]))
    assert_refused(cli(evaluate.main, *seven, *common), "classes in another order (background, disc, ")
    assert not out.exists()
    out.write_text("precious")
    assert_refused(cli(evaluate.main, *seven, *common), "is a file")


def test_prediction_refuses_wrong_input(checkpoints, tiny, tmp_path, cli):
    common = ["--checkpoint", checkpoints / "seven.pt", "--out", tmp_path / "out"]
    images = tiny / "JPEGImages"
    assert_refused(cli(predict.main, *common, "--images", tmp_path), "no such file")
    for flag in (["--scribbles", tiny / "scribbles"], ["--threshold", "0.5"], ["--class_thresholds", "{disc: 0.5}"]):
        assert_refused(cli(predict.main, *common, "--images", images, *flag), f"{flag[0]} requires --pseudo_labels")
    assert_refused(cli(predict.main, *common, "--images", tiny, "--split", "nothing"), "nothing.txt not found")
    assert_refused(cli(predict.main, *common, "--images", images, "--split", "val"), "holds neither")
    assert not (tmp_path / "out").exists()


def test_prediction_reports_the_kinds_of_skipped_files(checkpoints, tiny, tmp_path, cli):
    photos = tmp_path / "photos"
    shutil.copytree(tiny / "JPEGImages", photos)
    for name in ("a.gif", "b.GIF", "notes.txt"):
        (photos / name).write_bytes(b"")
    for name in sorted(photos.glob("demo*"))[2:]:
        name.unlink()
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", photos, "--out", photos / "out"]
    for _ in range(2):  # predict must not report its own output
        code, _, error = cli(predict.main, *arguments)
        assert code == 0 and "files that are not images were skipped (2 .gif, 1 .txt)" in error
    assert len(list((photos / "out").glob("*.png"))) == 2
    assert cli(predict.main, *arguments[:-1], photos / "second")[0] == 0
    assert len(list((photos / "second").rglob("*.png"))) == 2, "neither masks nor overlays of the first are images"


def test_prediction_skips_a_bad_image_and_never_overwrites_masks(checkpoints, root, tmp_path, cli):
    out = tmp_path / "out"
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--images", root, "--split", "val", "--out", out]
    image = root / "JPEGImages/demo_0009.jpg"
    content = image.read_bytes()
    image.write_bytes(b"broken")
    code, _, error = cli(predict.main, *arguments)
    assert code == 1 and "failed: " in error and "demo_0009.jpg: not a readable image" in error and "Traceback" not in error
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert sorted(path.name for path in first) == ["demo_0008.png", "demo_0010.png"]

    image.write_bytes(content)
    assert cli(predict.main, *arguments)[0] == 0
    masks = [f"demo_{number:04d}" for number in (8, 9, 10)]
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "predictions.json", "shares.json", "gallery.jpg",
        *(f"{name}.png" for name in masks), *(f"overlays/{name}.jpg" for name in masks),
    }  # fmt: skip
    assert all(path.stat().st_mtime_ns == time for path, time in first.items()), "existing masks are not written again"
    assert json.loads((out / "shares.json").read_text())["labelled_share"] == 1
    assert_refused(cli(predict.main, *arguments, "--inference.flip"), "another inference")
    (out / "predictions.json").unlink()
    assert_refused(cli(predict.main, *arguments), "holds other files")


def test_pseudo_labels_have_only_classes_scribbled_in_the_image(checkpoints, root, tmp_path, cli):
    names = [f"demo_{number:04d}" for number in (8, 9, 10)]
    scribbles = {name: np.full((HEIGHT, WIDTH), 255, np.uint8) for name in names}
    scribbles[names[0]][2, :9], scribbles[names[1]][5, :9] = 2, 6  # no scribble in the third image
    for name, scribble in scribbles.items():
        write_label(tmp_path / f"scribbles/{name}.png", scribble)
    common = ["--checkpoint", checkpoints / "seven.pt", "--images", root, "--split", "val", "--pseudo_labels"]
    common += ["--threshold", "0", "--scribbles", tmp_path / "scribbles"]
    found = {}
    for kind in ("scribbled", "all"):
        flags = ["--classes", "all"] if kind == "all" else []
        assert cli(predict.main, *common, *flags, "--out", tmp_path / kind)[0] == 0
        found[kind] = {name: read_label(tmp_path / kind / f"{name}.png") for name in names}
    assert set(np.unique(found["scribbled"][names[0]])) == {2} and set(np.unique(found["scribbled"][names[1]])) == {6}
    assert (found["scribbled"][names[2]] == found["all"][names[2]]).all(), "without a scribble, every class is possible"
    free = found["all"][names[0]]
    assert not set(np.unique(free)) <= {2} and (free[2, :9] == 2).all()


def test_pseudo_labels_are_compared_with_the_masks_that_exist(checkpoints, root, tmp_path, cli):
    names = [f"demo_{number:04d}" for number in (8, 9, 10)]
    masks = {name: read_label(root / f"SegmentationClass/{name}.png") for name in names}
    (root / f"SegmentationClass/{names[2]}.png").unlink()
    common = ["--checkpoint", checkpoints / "seven.pt", "--images", root, "--split", "val", "--pseudo_labels"]
    code, printed, _ = cli(predict.main, *common, "--threshold", "0.16", "--out", tmp_path / "labels")
    assert code == 0 and "against the masks: mIoU" in printed
    shares = json.loads((tmp_path / "labels/shares.json").read_text())
    ours = np.stack([read_label(tmp_path / f"labels/{name}.png") for name in names[:2]])
    theirs = np.stack([masks[name] for name in names[:2]])
    precisions, coverages, ious = [], [], []
    for number in range(7):
        labelled, true = (ours == number) & (theirs != 255), theirs == number
        right = (labelled & true).sum()
        precisions.append(right / labelled.sum() if labelled.any() else None)
        coverages.append(right / true.sum() if true.any() else None)
        ious.append(right / (labelled | true).sum() if (labelled | true).any() else None)
    for kind, want in (("precision", precisions), ("coverage", coverages), ("iou", ious)):
        assert list(shares[f"{kind}_of_class"].values()) == [None if value is None else pytest.approx(value) for value in want]
    assert shares["miou"] == pytest.approx(np.mean([value for value in ious if value is not None]))

    for name in names[:2]:  # damaged masks, which are only compared
        (root / f"SegmentationClass/{name}.png").write_bytes(b"damaged")
    code, printed, _ = cli(predict.main, *common, "--out", tmp_path / "alone")
    assert code == 0 and "against the masks" not in printed
    assert "precision_of_class" not in json.loads((tmp_path / "alone/shares.json").read_text())


def test_pseudo_labels_of_changed_scribbles_or_tags_are_refused(checkpoints, root, tmp_path, cli):
    tags = {name: ["disc"] for name in (root / "ImageSets/Segmentation/train.txt").read_text().split()}
    (root / "tags.json").write_text(json.dumps(tags))
    common = ["--checkpoint", checkpoints / "seven.pt", "--images", root, "--split", "train", "--pseudo_labels"]
    by_scribbles = [*common, "--scribbles", root / "scribbles", "--out", tmp_path / "scribbled"]
    by_tags = [*common, "--classes", "tags", "--out", tmp_path / "tagged"]
    for flags in (by_scribbles, by_tags):
        assert cli(predict.main, *flags)[0] == 0
        assert cli(predict.main, *flags)[0] == 0, "the same again"
    scribble = read_label(root / "scribbles/demo_0003.png")
    write_label(root / "scribbles/demo_0003.png", np.where(scribble == 255, 255, 1).astype(np.uint8))
    (root / "tags.json").write_text(json.dumps(tags | {"demo_0003": ["star"]}))
    assert_refused(cli(predict.main, *by_scribbles), "was made with another scribbles_sha256: delete the folder")
    assert_refused(cli(predict.main, *by_tags), "was made with another tags_sha256: delete the folder")


@pytest.mark.slow
def test_pseudo_labels_with_class_thresholds_tags_crf_and_shards(checkpoints, root, tmp_path, cli):
    names = [f"demo_{number:04d}" for number in (8, 9, 10)]
    (root / "tags.json").write_text(json.dumps({name: ["disc", "star"] for name in names}))
    common = ["--checkpoint", checkpoints / "seven.pt", "--images", root, "--split", "val", "--pseudo_labels"]
    common += ["--threshold", "0", "--probabilities"]
    assert cli(predict.main, *common, "--out", tmp_path / "all")[0] == 0
    for shard, done in (("1/2", [names[0], names[2]]), ("2/2", names)):
        assert cli(predict.main, *common, "--out", tmp_path / "shards", "--shard", shard)[0] == 0
        assert sorted(path.stem for path in (tmp_path / "shards").glob("*.png")) == done
    assert (tmp_path / "all/shares.json").is_file() and not (tmp_path / "shards/shares.json").exists(), "not for a shard"
    assert cli(predict.main, *common, "--out", tmp_path / "tags", "--classes", "tags", "--crf", "torch")[0] == 0
    strict = "{background: 1, disc: 1}"
    assert cli(predict.main, *common, "--out", tmp_path / "classes", "--class_thresholds", strict)[0] == 0
    for name in names:
        whole = read_label(tmp_path / f"all/{name}.png")
        probabilities = np.load(tmp_path / f"all/probabilities/{name}.npz")["probabilities"]
        assert probabilities.shape == (7, HEIGHT, WIDTH) and (probabilities.argmax(axis=0) == whole).mean() > 0.95
        assert (read_label(tmp_path / f"shards/{name}.png") == whole).all()
        assert set(np.unique(read_label(tmp_path / f"tags/{name}.png"))) <= {0, 1, 4}
        assert (read_label(tmp_path / f"classes/{name}.png") == np.where(whole <= 1, 255, whole)).all()
    refused = [*common, "--out", tmp_path / "x"]
    others = ["--checkpoint", checkpoints / "three.pt", *common[2:], "--out", tmp_path / "x"]
    assert_refused(cli(predict.main, *others), "3 classes")
    assert not (tmp_path / "x").exists()
    assert_refused(cli(predict.main, *refused, "--class_thresholds", "{unicorn: 0.5}"), "unicorn is not one of the classes")
    assert_refused(cli(predict.main, *refused, "--shard", "0/2"), "--shard '0/2'")
    (root / "tags.json").unlink()
    assert_refused(cli(predict.main, *refused, "--classes", "tags"), "tags.json")


EXTRA = ("defusedxml", "h5py", "onnx", "onnxruntime", "onnxscript", "pycocotools", "pydensecrf")


@pytest.mark.slow
def test_all_modules_import_without_the_extra_packages():
    """An extra package is imported only when it is used."""
    modules = "train, evaluate, predict, tools.prepare, tools.scribbles, tools.superpixels, tools.export, tools.check_dataset"
    hide = f"import sys; sys.modules.update(dict.fromkeys({EXTRA}))"
    done = subprocess.run([sys.executable, "-c", f"{hide}; import {modules}"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    listed = (REPOSITORY / "requirements-extra.txt").read_text()
    assert all(package in listed for package in EXTRA)


@pytest.mark.parametrize("command", ["export", "xml2png", "pydensecrf"])
def test_the_error_for_a_missing_extra_package_names_the_package(command, tiny, checkpoints, tmp_path, cli, monkeypatch):
    for package in EXTRA:
        monkeypatch.setitem(sys.modules, package, None)
        for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, module)
    (tmp_path / "one.xml").write_text("<annotation/>")
    checkpoint = ["--checkpoint", checkpoints / "seven.pt"]
    main, arguments, package = {
        "export": (export.main, [checkpoints / "seven.pt", "--out", tmp_path / "out"], "onnx"),
        "xml2png": (
            scribbles.main,
            ["xml2png", "--xml", tmp_path, "--classes", "voc", "--out", tmp_path / "out", "--workers", "1"],
            "defusedxml",
        ),
        "pydensecrf": (
            evaluate.main,
            [*checkpoint, "--data.root", tiny, "--crf", "pydensecrf", "--out", tmp_path / "out", "--workers", "0"],
            "pydensecrf",
        ),
    }[command]
    code, _, error = cli(main, *arguments)
    assert code and f"the package {package} is missing: run pip install -r requirements-extra.txt" in error.splitlines()[-1]
    assert not list(tmp_path.glob("out/*.png"))
