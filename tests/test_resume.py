"""A run that was killed or stopped, and then resumed, ends like a run that was never stopped."""

import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from training import BLPSEG, FLAGS, UR, call, call_and_signal

import engine.checkpoint
import train
from tools import superpixels

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes():
    """A context that starts training processes quickly: it forks a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training"])
    first = context.Process(target=int)  # this start waits for the imports
    first.start()
    first.join()
    return context


@pytest.fixture(scope="module")
def whole(processes, tiny, tmp_path_factory):
    """A run that was never stopped. The file `seconds` holds its duration."""
    out = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    child = processes.Process(target=call, args=(out, tiny))
    child.start()
    child.join()
    assert child.exitcode == 0
    (out / "seconds").write_text(str(time.monotonic() - start))
    return out


def assert_same_end(out, whole):
    for name in ("last.pt", "best.pt"):
        got, want = (torch.load(folder / name, weights_only=True) for folder in (out, whole))
        assert got["step"] == want["step"]
        assert all(torch.equal(got["method"][key], value) for key, value in want["method"].items())
    momenta = [[s["momentum_buffer"] for s in torch.load(f / "last.pt")["optimizer"]["state"].values()] for f in (out, whole)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True)) and momenta[0]
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize("where, time", [
    ("saving", 2), ("saving", 4), ("saving", 7), ("saved", 1), ("saved", 2), ("saved", 3), ("validating", 11), ("stepping", 3),
])  # fmt: skip
def test_a_run_killed_at_a_chosen_moment_resumes_exactly(processes, tiny, whole, tmp_path, where, time):
    child = processes.Process(target=call_and_signal, args=(tmp_path / "run", tiny, where, time))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    if where == "saving":  # an unfinished file; the old checkpoint is still complete
        assert len(list((tmp_path / "run").glob(".*.part"))) == 1
    if where == "validating":  # the second validation; the steps before it are saved
        assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 4
    child = processes.Process(target=call, args=(tmp_path / "run", tiny))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert_same_end(tmp_path / "run", whole)


def test_a_killed_self_training_run_resumes_exactly(processes, tiny, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    codes = []
    for work, *arguments in (
        (call, whole, tiny, BLPSEG),
        (call_and_signal, run, tiny, "stepping", 3, BLPSEG),
        (call, run, tiny, BLPSEG),
    ):
        child = processes.Process(target=work, args=arguments)
        child.start()
        child.join()
        codes.append(child.exitcode)
    assert codes == [0, -signal.SIGKILL, 0]
    assert_same_end(run, whole)


def test_runs_killed_at_twenty_random_moments_resume_exactly(processes, tiny, whole, tmp_path):
    seconds, longest = random.Random(0), float((whole / "seconds").read_text())
    kills, run_number, resumed = 0, 0, 0
    while kills < 20:
        out, run_number = tmp_path / str(run_number), run_number + 1
        while True:
            child = processes.Process(target=call, args=(out, tiny))
            child.start()
            saved = (out / "last.pt").is_file()  # then the run resumes and needs less time
            child.join(seconds.uniform(0, longest * (0.6 if saved else 1)) if kills < 20 else None)
            if child.exitcode is not None:
                break
            child.kill()
            child.join()
            kills += 1
        assert child.exitcode == 0
        assert_same_end(out, whole)
        resumed += sum(session["first_step"] > 0 for session in json.loads((out / "run.json").read_text())["sessions"])
    assert resumed, "every run was killed before its first checkpoint"


@pytest.mark.parametrize("number, times", [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_saves_and_ends_the_run_within_one_step(processes, tiny, whole, tmp_path, number, times):
    """SIGTERM may come twice: a cluster may also send it to the launcher, which passes it on."""
    out, log = tmp_path / "run", tmp_path / "log"
    child = processes.Process(target=call_and_signal, args=(out, tiny, "stepping", 3, UR, [number] * times, log))
    child.start()
    child.join()
    assert child.exitcode == 128 + number
    assert f"stopped by {number.name}: rerun the same command to resume" in log.read_text()
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 3
    child = processes.Process(target=call, args=(out, tiny))
    child.start()
    child.join()
    assert_same_end(out, whole)
    assert [session["first_step"] > 0 for session in json.loads((out / "run.json").read_text())["sessions"]] == [False, True]


def test_a_second_interrupt_ends_the_run_at_once(processes, tiny, tmp_path):
    log = tmp_path / "log"
    arguments = (tmp_path / "run", tiny, "stepping", 3, UR, [signal.SIGINT] * 2, log)
    child = processes.Process(target=call_and_signal, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 130 and "interrupted" in log.read_text().splitlines()[-1]
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 2, "the checkpoint of the validation before"


def test_a_run_does_not_resume_after_its_inputs_changed(root, checkpoints, tmp_path, cli):
    init = shutil.copy(checkpoints / "seven.pt", tmp_path / "init.pt")
    arguments = [*FLAGS, "--train.steps", "1", "--data.root", root, "--init", init, "--out", tmp_path / "run"]
    assert cli(train.main, *arguments)[0] == 0
    before = (tmp_path / "run/last.pt").read_bytes()
    assert cli(train.main, *arguments)[0] == 0

    def refused(what):
        code, _, stderr = cli(train.main, *arguments)
        assert code == 2 and f"holds a run whose {what} changed since" in stderr and len(stderr.splitlines()) == 1
        assert (tmp_path / "run/last.pt").read_bytes() == before

    (root / "scribbles/pseudo_labels.json").write_text('{"threshold": 0.5}')
    refused("labels")
    shutil.copy(tmp_path / "run/best.pt", init)
    refused("labels and init")
    (root / "scribbles/pseudo_labels.json").unlink()
    init.unlink()  # the run has started, so it no longer needs the file
    assert cli(train.main, *arguments)[0] == 0
    names = root / "ImageSets/Segmentation/train.txt"
    names.write_text("\n".join(names.read_text().split()[1:]))
    refused("data")
    assert cli(superpixels.main, root, "--segments", "60")[0] == 0  # the run started without superpixels
    refused("data and superpixels")


def test_a_finished_run_stays_unchanged_and_fresh_starts_over(whole, tiny, tmp_path, cli, monkeypatch):
    before = (whole / "last.pt").read_bytes()
    arguments = [*FLAGS, "--data.root", tiny, "--out"]
    code, output, _ = cli(train.main, *arguments, whole)
    assert code == 0 and "8 train and 3 val images, 7 classes" in output and "resuming after step 4 of 4 steps" in output
    assert (whole / "last.pt").read_bytes() == before

    code, _, stderr = cli(train.main, *arguments, whole, "--train.lr", "0.02", "--train.seed", "3")
    assert code == 2 and "train.lr 0.01 -> 0.02, train.seed 0 -> 3" in stderr and len(stderr.splitlines()) == 1
    assert (whole / "last.pt").read_bytes() == before

    out = tmp_path / "run"
    assert cli(train.main, *arguments, out, "--train.steps", "2")[0] == 0
    # torchrun repeats --fresh at a restart: once before the first attempt has deleted the old run, and once after.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for _ in range(2):
        assert cli(train.main, *arguments, out, "--train.steps", "1", "--fresh")[0] == 0
        assert torch.load(out / "last.pt", weights_only=True)["step"] == 1
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 3, "losses, an inspection, a validation"
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 2
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    (out / "evaluation").mkdir()
    shutil.copytree(tiny / "scribbles", out / "pseudo_labels")
    (out / "pseudo_labels/pseudo_labels.json").write_text("{}")
    on_its_own = ["--data.labels", out / "pseudo_labels", "--train.steps", "1", "--fresh"]
    assert cli(train.main, *arguments, out, *on_its_own)[0] == 0
    assert (out / "pseudo_labels").is_dir(), "the run trains on these labels"
    assert cli(train.main, *arguments, out, "--train.steps", "1", "--fresh")[0] == 0
    assert not (out / "pseudo_labels").exists() and (out / "evaluation").is_dir()
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 1, "without torchrun, --fresh is a new start"

    # A run from before a setting was there resumes, unless the setting is now another than the default.
    content = torch.load(out / "last.pt", weights_only=True)
    del content["config"]["method"]["gated_crf"]
    torch.save(content, out / "last.pt")
    resumed = [*arguments, out, "--train.steps", "1"]
    assert cli(train.main, *resumed)[0] == 0
    code, _, stderr = cli(train.main, *resumed, "--method.gated_crf", "0.1")
    assert code == 2 and "method.gated_crf 0.0 -> 0.1" in stderr

    # config.yaml of the run repeats the run in another folder, and does not delete that folder.
    for _ in range(2):
        assert cli(train.main, "--config", out / "config.yaml", "--out", tmp_path / "again")[0] == 0
    assert len(json.loads((tmp_path / "again/run.json").read_text())["sessions"]) == 2
    first, repeated = (torch.load(folder / "last.pt", weights_only=True)["method"] for folder in (out, tmp_path / "again"))
    assert all(torch.equal(first[key], repeated[key]) for key in first)


def test_a_full_disk_gives_one_line_and_keeps_the_last_checkpoint(tiny, tmp_path):
    """The file system has room for the first checkpoint, but not for a second one beside it."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a file system of a chosen size is not permitted here")
    try:
        command = [sys.executable, "train.py", *FLAGS, "--data.root", tiny, "--out", small / "run"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=engine.checkpoint.__file__.rsplit("/", 2)[0])
        errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert done.returncode == 1 and len(errors) == 1 and "No space left on device" in errors[0], done.stderr
        assert "Traceback" not in done.stderr
        assert torch.load(small / "run/last.pt", weights_only=True)["step"] == 2
    finally:
        subprocess.run(["umount", small], check=True)
