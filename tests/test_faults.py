"""Losses and weights that are not finite, and workers that die or hang."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from check_run import problems
from conftest import REPOSITORY
from training import FLAGS

import train
from datasets import open_index
from datasets.segmentation import SegmentationDataset, TrainingOrder
from engine.loading import TrackedDataset, explain_failures, loader
from errors import Failure
from tools.batch import BatchConfig, process

pytestmark = pytest.mark.slow


def poison(monkeypatch, *steps):
    """Makes the images of these steps NaN. Steps count from 1."""
    calls, original = 0, train.to_device

    def poisoned(batch, device):
        nonlocal calls
        calls += 1
        moved = original(batch, device)
        return moved | {"image": moved["image"] * torch.nan} if calls in steps else moved

    monkeypatch.setattr(train, "to_device", poisoned)


def state(run):
    return torch.load(run / "last.pt", weights_only=True)


def test_a_nonfinite_loss_stops_and_names_step_terms_and_images(monkeypatch, tiny, tmp_path, cli):
    poison(monkeypatch, 3)
    flags = [*FLAGS, "--train.log_every", "50", "--data.root", tiny, "--out", tmp_path]
    code, _, stderr = cli(train.main, *flags)
    line = stderr.splitlines()[-1]
    assert code == 1
    assert re.match(r"error: the loss is not finite at step 3 \(cross_entropy \S+, soft_entropy nan; images ", line), line
    names = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()
    for _, position in TrainingOrder(8, 2, 3, seed=0).batch(2):
        assert names[position] in line
    assert state(tmp_path)["step"] == 2
    assert all(value.isfinite().all() for value in state(tmp_path)["method"].values())


def test_skip_nonfinite_skips_at_most_the_allowed_number_of_steps(monkeypatch, tiny, tmp_path, cli):
    poison(monkeypatch, 1, 3)
    flags = [*FLAGS, "--data.root", tiny, "--out"]
    assert cli(train.main, *flags, tmp_path / "two", "--skip-nonfinite", "2")[0] == 0
    content = state(tmp_path / "two")
    assert content["skipped"] == 2 and content["step"] == 4
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0], parse_constant=pytest.fail)  # JSON has no NaN
    assert first["step"] == 1 and first["loss"] is None
    assert any("is None at step 1" in problem for problem in problems(tmp_path / "two"))
    assert all(value.isfinite().all() for value in content["method"].values()), "neither weights nor running statistics are NaN"
    assert int(content["method"]["network.backbone.bn1.num_batches_tracked"]) == 2

    poison(monkeypatch, 1, 3)
    code, _, stderr = cli(train.main, *flags, tmp_path / "one", "--skip-nonfinite", "1")
    assert code == 1 and "not finite at step 3" in stderr
    poison(monkeypatch, 1)  # the next step is step 3 of the run
    assert cli(train.main, *flags, tmp_path / "one", "--skip-nonfinite", "2")[0] == 0
    assert state(tmp_path / "one")["skipped"] == 2, "the run resumed with a higher limit"


def test_nonfinite_weights_are_not_saved(monkeypatch, tiny, tmp_path, cli):
    step, calls = torch.optim.SGD.step, []

    def overflow(self):
        step(self)
        calls.append(self)
        if len(calls) == 2:  # a validation follows this step
            self.param_groups[0]["params"][0].data[0] = torch.inf

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    code, _, stderr = cli(train.main, *FLAGS, "--data.root", tiny, "--out", tmp_path)
    assert code == 1 and "the weights are not finite after step 2" in stderr
    assert not list(tmp_path.glob("*.pt"))


def with_workers_that(act, position, command, *arguments):
    """Runs a command in a new process, because torch reports a dead worker by a signal. The loader workers run `act` instead of
    reading the image at `position`."""
    program = f"""if True:
        import os, sys, time, evaluate, train
        from torch.utils.data import get_worker_info
        from datasets.segmentation import SegmentationDataset as Data
        from errors import run
        read = Data.read
        Data.read = lambda self, position: {act} if get_worker_info() and position == {position} else read(self, position)
        run({command})
    """
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def test_a_dead_loader_worker_is_reported_with_its_file(tiny, tmp_path):
    flags = [*FLAGS, "--train.workers", "1", "--data.root", tiny, "--out", tmp_path]
    done = with_workers_that("os._exit(1)", 5, "train.main", *flags)
    name = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()[5]
    assert done.returncode == 1
    assert f"a loader worker died reading {tiny}/JPEGImages/{name}.jpg" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hanging_loader_worker_is_reported_and_the_program_ends(tiny, tmp_path, workers):
    flags = ["--train.workers", workers, "--train.loader_timeout", "5", "--data.root", tiny, "--out", tmp_path]
    done = with_workers_that("time.sleep(600)", 5, "train.main", *FLAGS, *flags)
    name = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()[5]
    assert done.returncode == 1
    assert "no batch came in 5 s" in done.stderr.splitlines()[-1] and f"{name}.jpg" in done.stderr.splitlines()[-1]


def test_a_completely_read_file_is_not_reported(tiny):
    watched = TrackedDataset(SegmentationDataset(open_index(tiny, "train", "scribbles")), workers=1)
    assert len(list(loader(watched, 1, 60, batch_size=None))) == 8
    assert watched.read_by([]) == []
    assert watched.read_by([int(watched.reading[0, 0])]) == [watched.dataset.index.images[7]]


def test_a_dead_worker_of_an_evaluation_is_reported_with_its_file(checkpoints, tiny, tmp_path):
    flags = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path / "out", "--workers", "1"]
    done = with_workers_that("os._exit(1)", 2, "evaluate.main", *flags)
    name = (tiny / "ImageSets/Segmentation/val.txt").read_text().split()[2]
    assert done.returncode == 1
    assert "a loader worker died reading" in done.stderr.splitlines()[-1] and f"{name}.jpg" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_dead_worker_is_reported_even_if_its_socket_fails_first(tiny):
    """The kernel closes the sockets of a dying worker before it signals the death. Here, an alarm replaces that signal."""
    watched = TrackedDataset(SegmentationDataset(open_index(tiny, "train", "scribbles")), workers=1)
    watched.reading[0] = torch.tensor([4321, -1, 3, 1])

    def report_death(*_):
        raise RuntimeError("DataLoader worker (pid 4321) exited unexpectedly with exit code 1")

    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD)}
    signal.signal(signal.SIGALRM, report_death)
    try:
        with pytest.raises(Failure, match=f"died reading {watched.dataset.index.images[3]}:"), explain_failures([watched], 9):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError(104, "Connection reset by peer")
        with pytest.raises(ConnectionResetError), explain_failures([watched], 9):  # no worker died
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_killed_worker_of_a_tool_raises_a_failure():
    items = {"1": {}, "__import__('os')._exit(1)": {}, "2": {}}
    with pytest.raises(Failure, match="a worker was killed"):
        process(eval, items, lambda name: False, BatchConfig(workers=2), "files")


def running(pid):
    """Whether a process is running. A process that has ended stays listed as a zombie (Z) until its parent waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_the_workers_of_a_killed_tool_also_end():
    program = """if True:
        import time
        from tools.batch import parallel
        with parallel(2, 2) as mapping:
            print(*mapping(eval, ["__import__('os').getpid()"] * 2), flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    pids = {int(pid) for pid in process.stdout.readline().split()}
    process.kill()
    process.wait()
    limit = time.monotonic() + 20
    while alive := {pid for pid in pids if running(pid)}:
        assert time.monotonic() < limit, f"workers {alive} live on"
        time.sleep(0.1)
    assert pids


@pytest.mark.parametrize("flags", [[], ["--deterministic", "--method.consistency", "30"]])
def test_the_same_command_gives_the_same_weights(flags, tiny, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that monkeypatch removes what the run sets
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        for name in "ab":
            assert cli(train.main, *FLAGS, *flags, "--data.root", tiny, "--out", tmp_path / name)[0] == 0
            assert torch.are_deterministic_algorithms_enabled() == bool(flags)
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == bool(flags)
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (state(tmp_path / name)["method"] for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
