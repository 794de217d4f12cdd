"""Every stage script in order on a small data set, and the commands that the scripts run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from check_run import problems
from conftest import REPOSITORY
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import predict
from datasets.files import UNLABELLED, read_label
from engine.annotation import draw_costs
from tools import compare, start_over

SMALL = [
    "--model.backbone", "resnet18", "--model.weights", "none", "--data.crop", "65", "--train.batch_size", "2",
    "--train.steps", "3", "--train.log_every", "1", "--train.workers", "0", "--train.lr", "0.01",
]  # fmt: skip


SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]


def script(name, *flags, shell="sh", cwd=None, **environment):
    """Runs a shell script of the repository with this Python, in the folder `cwd`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [shell, REPOSITORY / name, *flags],
        env=os.environ | {"PATH": path} | {key: str(value) for key, value in environment.items()},
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def chain(tiny, tmp_path_factory):
    """A folder of runs: the scripts have trained and evaluated every stage."""
    out = tmp_path_factory.mktemp("runs")
    data = {"DATA_ROOT": tiny, "SUPERPIXELS": out / "superpixels"}
    stage2 = {"LABELS_FROM": out / "ss/best.pt", "THRESHOLD": 0.2, "PRESET": "multi_scale"}
    for name, changes in {
        "baseline": {},
        "UR": {},
        "SS": {"INIT": out / "ur/best.pt"},
        "UR_stage2": stage2,
        "SS_stage2": {"INIT": out / "ur_stage2/best.pt", **stage2},
    }.items():
        done = script(f"train_seg_{name}.sh", *SMALL, OUT=out / name.lower(), **data, **changes)
        assert done.returncode == 0, done.stderr
        done = script("evaluate.sh", "--workers", "0", CHECKPOINT=out / name.lower() / "best.pt", DATA_ROOT=tiny)
        assert done.returncode == 0, done.stderr
        (out / name.lower() / "evaluation.txt").write_text(done.stdout)
    return out


SUPERPIXELS = "-m tools.superpixels d --split t --out x"
PSEUDO_LABELS = (
    "predict.py --checkpoint ss.pt --images d --split t --preset cc4s --pseudo_labels --threshold 0.7 --scribbles s --out l"
)
ON_SCRIBBLES = "--data.root d --data.train_split t --data.labels s --data.truth m --out o"
ON_PSEUDO_LABELS = ON_SCRIBBLES.replace("labels s", "labels l")
COMMANDS = {
    "train_seg_baseline.sh": [f"train.py --config configs/cc4s/baseline.yaml {ON_SCRIBBLES}"],
    "train_seg_UR.sh": [
        SUPERPIXELS, f"train.py --config configs/cc4s/ur.yaml {ON_SCRIBBLES} --data.superpixels x"
    ],
    "train_seg_SS.sh": [
        SUPERPIXELS, f"train.py --config configs/cc4s/ss.yaml {ON_SCRIBBLES} --data.superpixels x --init init",
    ],
    "train_seg_UR_stage2.sh": [
        SUPERPIXELS, PSEUDO_LABELS,
        f"train.py --config configs/cc4s/ur_stage2.yaml {ON_PSEUDO_LABELS} --data.superpixels x --init init",
    ],
    "train_seg_SS_stage2.sh": [
        SUPERPIXELS, PSEUDO_LABELS,
        f"train.py --config configs/cc4s/ss_stage2.yaml {ON_PSEUDO_LABELS} --data.superpixels x --init init",
    ],
    "train_blpseg.sh": [f"train.py --config configs/blpseg/voc.yaml {ON_SCRIBBLES}"],
    "evaluate.sh": ["evaluate.py --checkpoint c --data.root d --data.labels m --data.split val --out o"],
}  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", COMMANDS)
def test_scripts_pass_the_paths_of_the_user_to_the_commands(name, shell, tmp_path):
    """In every shell, and when called from another folder."""
    for file in ("init", "ss.pt"):
        (tmp_path / file).touch()
    paths = {"DATA_ROOT": "d", "TRAIN_SPLIT": "t", "SCRIBBLES": "s", "SUPERPIXELS": "x", "PSEUDO_LABELS": "l", "MASKS": "m"}
    paths |= {"INIT": tmp_path / "init", "CHECKPOINT": "c", "OUT": "o", "THRESHOLD": "0.7", "PRESET": "cc4s", "LAUNCH": "echo"}
    done = script(name, "--more", "1", shell=shell, cwd=tmp_path, LABELS_FROM=tmp_path / "ss.pt", **paths)
    assert done.returncode == 0, done.stderr
    *before, last = COMMANDS[name]
    assert done.stdout.replace(f"{tmp_path}/", "").splitlines() == [*before, f"{last} --more 1"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", [*COMMANDS, "train_cisc_r.sh", "train_recurseed.sh", "train_unimatch.sh"])
def test_help_shows_the_flags_and_does_nothing_else(shell, name, tmp_path):
    done = script(name, "--help", shell=shell, cwd=tmp_path, LAUNCH="echo")
    method = re.sub("^seg_.*", "cc4s", name.removeprefix("train_").removesuffix(".sh"))
    assert done.returncode == 0 and done.stdout.endswith("--help\n") and len(done.stdout.splitlines()) == 1, done.stderr
    assert name == "evaluate.sh" or done.stdout == f"train.py --method.name {method} --help\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("checkpoint", "out"),
    [("RUN/best.pt", "RUN/evaluation"), ("RUN", "RUN/evaluation"), ("hf:ANN/cells", "runs/ANN/cells/evaluation")],
)
def test_scores_lie_beside_the_checkpoint(shell, checkpoint, out, tmp_path):
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN/best.pt").touch()
    done = script("evaluate.sh", shell=shell, LAUNCH="echo", CHECKPOINT=checkpoint.replace("RUN", str(tmp_path / "RUN")))
    assert done.stdout.split(" --out ")[1].strip() == out.replace("RUN", str(tmp_path / "RUN"))


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("--fresh", False),
        ("--fresh --run.seed", True),  # a wrong flag
        ("--train.steps 3 --fresh=true", False),
        ("--fresh=True", False),
        ("--fresh false", True),
        ("--fresh=no", True),
        ("--train.steps 3", True),
    ],
)
def test_only_fresh_starts_a_chain_over(flags, kept, tmp_path, cli):
    out = tmp_path / "a b"
    for run in ("one", "two", "other"):
        (out / run).mkdir(parents=True)
    config = REPOSITORY / "configs/cisc_r/voc.yaml"
    code, _, error = cli(start_over.main, out, "one two three", "--config", config, *flags.split())
    assert code == (2 if "seed" in flags else 0), error
    assert sorted(path.name for path in out.iterdir()) == (["one", "other", "two"] if kept else ["other"])


@pytest.mark.slow
def test_a_run_in_training_is_not_deleted(tmp_path, cli):
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
    waiting = (
        "import sys; from pathlib import Path; from engine.run_folder import lock; lock(Path(sys.argv[1])); print(1); input()"
    )
    command = [sys.executable, "-c", waiting, tmp_path / "two"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        code, _, error = cli(
            start_over.main, tmp_path, "one two", "--config", REPOSITORY / "configs/cisc_r/voc.yaml", "--fresh"
        )
        other.communicate(b"\n")
    assert code == 2 and "another process is training" in error
    assert (tmp_path / "one").is_dir() and (tmp_path / "two").is_dir()


@pytest.mark.slow
def test_evaluate_saves_masks_that_match_the_scores(chain, tiny, tmp_path):
    paths = {"CHECKPOINT": chain / "ur/best.pt", "DATA_ROOT": tiny, "OUT": tmp_path / "evaluation", "SAVE": tmp_path / "masks"}
    assert script("evaluate.sh", "--workers", "0", **paths).returncode == 0
    names = (tiny / "ImageSets/Segmentation/val.txt").read_text().split()
    assert sorted(path.stem for path in (tmp_path / "masks").glob("*.png")) == names
    right = counted = 0
    for name in names:
        mask, truth = read_label(tmp_path / f"masks/{name}.png"), read_label(tiny / f"SegmentationClass/{name}.png")
        right, counted = right + ((mask == truth) & (truth != UNLABELLED)).sum(), counted + (truth != UNLABELLED).sum()
    scores = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert right / counted == pytest.approx(scores["pixel_accuracy"])
    for folder in ("SegmentationClass", "scribbles"):
        refused = script("evaluate.sh", **paths | {"SAVE": tiny / folder})
        assert refused.returncode == 2 and "holds other files" in refused.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_quickstart_runs_the_chain_in_every_shell(shell, tmp_path):
    """Stand-ins replace the scripts that quickstart.sh calls. Each stand-in prints how it is called."""
    repository = tmp_path / "repository"
    (repository / "tools").mkdir(parents=True)
    (repository / ".venv/bin").mkdir(parents=True)
    (repository / ".venv/bin/activate").write_text("python() { echo python $*; }\n")
    shutil.copy(REPOSITORY / "quickstart.sh", repository)
    (repository / "tools/setup_venv.sh").write_text("echo setup\n")
    print_call = 'echo "$(basename $0) INIT=${INIT:-} LABELS_FROM=${LABELS_FROM:-} OUT=$OUT $*"\n'
    for name in [*COMMANDS]:
        (repository / name).write_text(print_call)
    done = subprocess.run(
        [shell, repository / "quickstart.sh", "--train.seed", "1"],
        env={"PATH": os.environ["PATH"], "OUT_ROOT": "r", "TRAIN_SPLIT": "other"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stages = [line for line in done.stdout.splitlines() if line.startswith("train_")]
    more = "--config configs/cc4s/demo.yaml --train.seed 1"
    assert stages == [
        f"train_seg_baseline.sh INIT= LABELS_FROM= OUT=r/baseline {more}",
        f"train_seg_UR.sh INIT= LABELS_FROM= OUT=r/ur {more}",
        f"train_seg_SS.sh INIT=r/ur/best.pt LABELS_FROM= OUT=r/ss {more}",
        f"train_seg_UR_stage2.sh INIT= LABELS_FROM=r/ss/best.pt OUT=r/ur_stage2 {more}",
        f"train_seg_SS_stage2.sh INIT=r/ur_stage2/best.pt LABELS_FROM=r/ss/best.pt OUT=r/ss_stage2 {more}",
    ]
    assert sum(line.startswith("evaluate.sh") for line in done.stdout.splitlines()) == 5
    assert done.stdout.splitlines()[-1] == "python -m tools.compare r"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_is_plain_sh(shell):
    scripts = [path for folder in (".", "tools", "benchmarks") for path in (REPOSITORY / folder).glob("*.sh")]
    assert len(scripts) >= 12
    for path in scripts:
        assert path.read_text().startswith("#!/bin/sh\n"), path
        done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not re.search(r"pipefail|\bsource |\[\[|\bbash\b|,,\}", path.read_text()), path


def test_stage_2_scripts_follow_the_released_chain(tmp_path):
    """UR stage 2 starts from ImageNet, SS stage 2 from UR stage 2. Both use the labels of SS. INIT sets another start."""
    repository = tmp_path / "repository"
    (repository / "tools").mkdir(parents=True)
    for name in ("train_seg_UR_stage2.sh", "train_seg_SS_stage2.sh", "tools/stages.sh"):
        shutil.copy(REPOSITORY / name, repository / name)
    for run in ("ss", "ur_stage2"):
        (repository / f"runs/{run}").mkdir(parents=True)
        (repository / f"runs/{run}/best.pt").touch()

    def commands(name, **environment):
        environment = {"PATH": os.environ["PATH"], "LAUNCH": "echo"} | environment
        command = ["sh", repository / f"train_seg_{name}_stage2.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    for name in ("UR", "SS"):
        _, predicted, trained = commands(name)
        assert "--checkpoint runs/ss/best.pt" in predicted and "--threshold 0.9" in predicted
        assert "--out runs/ss/pseudo_labels" in predicted and "--data.labels runs/ss/pseudo_labels" in trained
        assert ("--init runs/ur_stage2/best.pt" in trained) == ("--init" in trained) == (name == "SS")
        assert "--init runs/ss/best.pt" in commands(name, INIT="runs/ss/best.pt")[-1]


@pytest.mark.parametrize(
    "name, first, variable",
    [
        ("SS", "UR", "INIT"),
        ("UR_stage2", "SS", "LABELS_FROM"),
        ("SS_stage2", "SS", "LABELS_FROM"),
        ("SS_stage2", "UR_stage2", "INIT"),
    ],
)
def test_a_script_names_the_stage_that_must_run_first(name, first, variable, tmp_path):
    (tmp_path / "ss.pt").touch()
    missing = {"LABELS_FROM": tmp_path / "ss.pt", variable: tmp_path / "best.pt"}
    done = script(f"train_seg_{name}.sh", LAUNCH="echo", **missing)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path}/best.pt not found: run train_seg_{first}.sh first, or set {variable}\n"


STAGES = ("baseline", "ur", "ss", "ur_stage2", "ss_stage2")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_writes_the_files_of_the_contract(chain, stage):
    assert problems(chain / stage) == []
    config = yaml.safe_load((chain / stage / "config.yaml").read_text())
    assert config["train"]["steps"] == 3
    assert Path(config["data"]["labels"]).name == ("pseudo_labels" if "stage2" in stage else "scribbles")
    lines = [json.loads(line) for line in (chain / stage / "metrics.jsonl").read_text().splitlines()]
    report = (chain / stage / "report.html").read_text()
    assert ("labels/precision/background" in lines[0]) == ("Pseudo-labels against the masks" in report) == ("stage2" in stage)
    lines = [line for line in lines if line["step"]]
    rates = [line["lr"] for line in lines if "lr" in line]
    first = 0.001 if stage in ("ss", "ss_stage2") else 0.01
    assert rates == pytest.approx([first * (1 - step / 3) ** 0.9 for step in range(3)])
    assert ("consistency" in lines[0], "colour" in lines[0]) == ("ss" in stage, "stage2" in stage)

    board = EventAccumulator(str(chain / stage)).Reload()
    assert board.Tags()["images"] == ["pictures"]
    for name in lines[0].keys() - {"step", "epoch"}:
        assert [(event.step, event.value) for event in board.Scalars(name)] == [
            (line["step"], pytest.approx(line[name])) for line in lines if name in line
        ]
    best = max(line["val_miou"] for line in lines if "val_miou" in line)
    assert f"{100 * best:.2f}%" in report


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["baseline", "ss_stage2"])
def test_evaluation_prints_and_writes_its_scores(chain, stage):
    text = (chain / stage / "evaluation.txt").read_text()
    scores = json.loads((chain / stage / "evaluation" / "metrics.json").read_text())
    assert f"{100 * scores['miou']:.2f}" in text and "triangle" in text and "pixel accuracy" in text
    assert set(scores["iou"]) == {"background", "disc", "square", "triangle", "star", "ring", "cross"}
    assert 0 <= scores["miou"] <= scores["dice"] <= 1
    assert scores["conditions"]["images"] == 3
    trained = [json.loads(line) for line in (chain / stage / "metrics.jsonl").read_text().splitlines()]
    assert scores["miou"] == pytest.approx(max(line.get("val_miou", 0) for line in trained))


@pytest.mark.slow
def test_pseudo_labels_keep_every_scribble_and_record_their_source(chain, tiny):
    folder = chain / "ss" / "pseudo_labels"
    record = json.loads((folder / "pseudo_labels.json").read_text())
    assert (
        record["checkpoint"] == str(chain / "ss/best.pt") and record["threshold"] == 0.2 and "predict.py" in record["command"]
    )
    names = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()
    assert sorted(path.stem for path in folder.glob("*.png")) == names
    labelled = []
    for name in names:
        label, scribble = read_label(folder / f"{name}.png"), read_label(tiny / f"scribbles/{name}.png")
        assert (label[scribble != UNLABELLED] == scribble[scribble != UNLABELLED]).all()
        labelled.append((label != UNLABELLED).mean())
    assert np.mean(labelled) == pytest.approx(json.loads((folder / "shares.json").read_text())["labelled_share"])


def test_pseudo_labels_are_certain_pixels_and_scribbles():
    label, certainty = np.array([[0, 0, 1, 0, 1]], np.uint8), np.array([[0.95, 0.5, 0.95, 0.9, 0.6]])
    thresholds = np.array([0.9, 0.5])
    assert predict.pseudo_label(label, certainty, thresholds, None).tolist() == [[0, 255, 1, 255, 1]]
    scribble = np.array([[1, 0, 255, 255, 255]], np.uint8)
    assert predict.pseudo_label(label, certainty, thresholds, scribble).tolist() == [[1, 0, 1, 255, 1]]


@pytest.mark.slow
def test_runs_are_compared_in_a_table_and_a_picture(chain, tiny, cli, tmp_path):
    printed = cli(compare.main, chain)[1]  # reads the data root from the evaluations
    assert [line.split()[0] for line in printed.splitlines()[1:6]] == list(STAGES)
    assert "alike" not in printed
    width, _ = Image.open(chain / "comparison.png").size
    assert width > 8 * 192
    assert cli(compare.main, chain, "--scribbles", "missing", "--out", tmp_path / "narrow.png")[0] == 0
    assert Image.open(tmp_path / "narrow.png").width < width
    (tmp_path / "shown").mkdir()
    for path in (tiny / "SegmentationClass").glob("*.png"):  # damaged, but compare only draws them
        (tmp_path / "shown" / path.name).write_bytes(b"no label")
    assert cli(compare.main, chain, "--scribbles", tmp_path / "shown", "--out", tmp_path / "grid.png")[0] == 0

    for name, crf in (("ur", "none"), ("ss", "torch")):
        scores = json.loads((chain / name / "evaluation/metrics.json").read_text())
        scores["conditions"]["crf"] = crf
        (tmp_path / name / "evaluation").mkdir(parents=True)
        (tmp_path / name / "evaluation/metrics.json").write_text(json.dumps(scores))
        (tmp_path / name / "best.pt").symlink_to(chain / name / "best.pt")
    printed = cli(compare.main, tmp_path)[1]
    assert "not all evaluated alike: crf differ" in printed and "of another checkpoint" not in printed

    costs = tmp_path / "cost.yaml"
    costs.write_text("{seconds: {scribbles: 36, masks: 360}, runs: {'u*': {scribbles: 100, masks: 10}}}")
    rows = [line.split() for line in cli(compare.main, tmp_path, "--cost", costs)[1].splitlines()[:3]]
    assert rows[0][-1] == "hours" and {row[0]: row[-1] for row in rows[1:]} == {"ur": "2.0", "ss": "-"}
    empty = tmp_path / "empty.png"
    draw_costs({}, empty)
    assert (tmp_path / "cost.png").read_bytes() != empty.read_bytes()
    costs.write_text("{seconds: {scribbles: 36}, runs: {ur: {tags: 3}}}")
    code, printed, error = cli(compare.main, tmp_path, "--cost", costs)
    assert code == 2 and "--cost.runs ur: tags is not in --cost.seconds (scribbles)" in error and not printed

    (tmp_path / "ur/best.pt").unlink()
    (tmp_path / "ur/best.pt").symlink_to(chain / "ss/best.pt")  # as if trained again but not evaluated again
    assert "ur/evaluation/metrics.json is of another checkpoint" in cli(compare.main, tmp_path, "--data.root", tiny)[1]
    (tmp_path / "ss" / "evaluation/metrics.json").write_text(json.dumps({"conditions": scores["conditions"]}))
    code, printed, error = cli(compare.main, tmp_path)
    assert code == 2 and "not written by evaluate.py" in error and not printed


@pytest.mark.slow
def test_blpseg_trains_evaluates_and_predicts(tiny, tmp_path):
    out, small = tmp_path / "blpseg", [*SMALL, "--method.self_training_from", "1", "--method.threshold", "0.1"]
    done = script("train_blpseg.sh", *small, OUT=out, DATA_ROOT=tiny)
    assert done.returncode == 0, done.stderr
    assert problems(out) == []
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(first["label_preference"] + first["scribble"])
    done = script("evaluate.sh", "--preset", "blpseg", "--workers", "0", CHECKPOINT=out / "best.pt", DATA_ROOT=tiny)
    assert done.returncode == 0 and "pixel accuracy" in done.stdout, done.stderr
    checkpoint, images = str(out / "best.pt"), str(tiny / "JPEGImages")
    flags = ["--checkpoint", checkpoint, "--images", images, "--out", str(tmp_path / "masks")]
    done = subprocess.run([sys.executable, REPOSITORY / "predict.py", *flags], capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path / "masks").glob("*.png"))) == 11, done.stderr
