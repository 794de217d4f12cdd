"""Losses that are not finite, and loader workers that die or hang."""

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
from engine.loading import Watched, explain_failures, loader
from errors import Failure
from tools.batch import BatchConfig, process

pytestmark = pytest.mark.slow


def poison(monkeypatch, *steps):
    """Makes the images of these steps (from 1) NaN."""
    calls, original = 0, train.to_device

    def poisoned(batch, device):
        nonlocal calls
        calls += 1
        there = original(batch, device)
        return there | {"image": there["image"] * torch.nan} if calls in steps else there

    monkeypatch.setattr(train, "to_device", poisoned)


def state(run):
    return torch.load(run / "last.pt", weights_only=True)


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_images(monkeypatch, tiny, tmp_path, cli):
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


def test_some_such_steps_are_left_out_where_it_is_asked_for(monkeypatch, tiny, tmp_path, cli):
    poison(monkeypatch, 1, 3)
    flags = [*FLAGS, "--data.root", tiny, "--out"]
    assert cli(train.main, *flags, tmp_path / "two", "--skip-nonfinite", "2")[0] == 0
    left = state(tmp_path / "two")
    assert left["skipped"] == 2 and left["step"] == 4
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0], parse_constant=pytest.fail)  # JSON has no NaN
    assert first["step"] == 1 and first["loss"] is None
    assert any("is None at step 1" in problem for problem in problems(tmp_path / "two"))
    assert all(value.isfinite().all() for value in left["method"].values()), "weights and running statistics"
    assert int(left["method"]["network.backbone.bn1.num_batches_tracked"]) == 2

    poison(monkeypatch, 1, 3)
    code, _, stderr = cli(train.main, *flags, tmp_path / "one", "--skip-nonfinite", "1")
    assert code == 1 and "not finite at step 3" in stderr
    poison(monkeypatch, 1)  # the next, which was the third
    assert cli(train.main, *flags, tmp_path / "one", "--skip-nonfinite", "2")[0] == 0
    assert state(tmp_path / "one")["skipped"] == 2, "the run went on with more allowed"


def test_weights_that_are_not_finite_are_not_saved(monkeypatch, tiny, tmp_path, cli):
    step, calls = torch.optim.SGD.step, []

    def overflow(self):
        step(self)
        calls.append(self)
        if len(calls) == 2:  # which a validation follows
            self.param_groups[0]["params"][0].data[0] = torch.inf

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    code, _, stderr = cli(train.main, *FLAGS, "--data.root", tiny, "--out", tmp_path)
    assert code == 1 and "the weights are not finite after step 2" in stderr
    assert not list(tmp_path.glob("*.pt"))


def with_workers_that(act, position, command, *arguments):
    """A command, in a process of its own (torch reports a dead worker by a signal), whose loader workers `act` instead of
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


def test_a_worker_that_dies_is_reported_with_its_file(tiny, tmp_path):
    flags = [*FLAGS, "--train.workers", "1", "--data.root", tiny, "--out", tmp_path]
    done = with_workers_that("os._exit(1)", 5, "train.main", *flags)
    name = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()[5]
    assert done.returncode == 1
    assert f"a loader worker died reading {tiny}/JPEGImages/{name}.jpg" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_is_reported_with_its_file_and_does_not_keep_the_program(tiny, tmp_path, workers):
    flags = ["--train.workers", workers, "--train.loader_timeout", "5", "--data.root", tiny, "--out", tmp_path]
    done = with_workers_that("time.sleep(600)", 5, "train.main", *FLAGS, *flags)
    name = (tiny / "ImageSets/Segmentation/train.txt").read_text().split()[5]
    assert done.returncode == 1
    assert "no batch came in 5 s" in done.stderr.splitlines()[-1] and f"{name}.jpg" in done.stderr.splitlines()[-1]


def test_a_file_that_has_been_read_is_not_blamed(tiny):
    watched = Watched(SegmentationDataset(open_index(tiny, "train", "scribbles")), workers=1)
    assert len(list(loader(watched, 1, 60, batch_size=None))) == 8
    assert watched.read_by([]) == []
    assert watched.read_by([int(watched.reading[0, 0])]) == [watched.dataset.index.images[7]]


def test_a_worker_of_an_evaluation_that_dies_is_reported_with_its_file(checkpoints, tiny, tmp_path):
    flags = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path / "out", "--workers", "1"]
    done = with_workers_that("os._exit(1)", 2, "evaluate.main", *flags)
    name = (tiny / "ImageSets/Segmentation/val.txt").read_text().split()[2]
    assert done.returncode == 1
    assert "a loader worker died reading" in done.stderr.splitlines()[-1] and f"{name}.jpg" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_dying_worker_whose_socket_fails_first_is_reported_with_its_file(tiny):
    """The kernel closes a dying worker's sockets before it tells of its end. Here, an alarm stands for what tells of it."""
    watched = Watched(SegmentationDataset(open_index(tiny, "train", "scribbles")), workers=1)
    watched.reading[0] = torch.tensor([4321, -1, 3, 1])

    def tell(*_):
        raise RuntimeError("DataLoader worker (pid 4321) exited unexpectedly with exit code 1")

    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD)}
    signal.signal(signal.SIGALRM, tell)
    try:
        with pytest.raises(Failure, match=f"died reading {watched.dataset.index.images[3]}:"), explain_failures([watched], 9):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError(104, "Connection reset by peer")
        with pytest.raises(ConnectionResetError), explain_failures([watched], 9):  # no worker died
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_worker_of_a_tool_that_is_killed_takes_one_line():
    items = {"1": {}, "__import__('os')._exit(1)": {}, "2": {}}
    with pytest.raises(Failure, match="a worker was killed"):
        process(eval, items, lambda name: False, BatchConfig(workers=2), "files")


def running(pid):
    """Whether a process lives; one that has ended and that nobody asks for stays in the list as a zombie (Z)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_the_workers_of_a_tool_that_is_killed_end_with_it():
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
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what the run sets goes with the test
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
