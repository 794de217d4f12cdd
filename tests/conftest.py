"""What tests share: the real data and parity cases in $SEG_SHARED, and a tiny data set in VOC layout."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# On the CPU whatever the machine has: what is compared is exact, and processes may be more than GPUs. Before torch is imported.
if os.environ.get("SEG_TEST_CUDA"):  # for tests/test_cuda.py
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as be_deterministic, before any test calls cuBLAS
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from config import Config, ModelConfig
from datasets.drawing import demo
from engine.checkpoint import save_checkpoint
from errors import run
from methods import build_method
from methods.cc4s import CC4SConfig

REPOSITORY = Path(__file__).parent.parent
WIDTH, HEIGHT = 96, 80  # of the tiny data set's pictures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train come first: begun last, the longest would keep one process at work alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def as_at_the_start() -> None:
    """Networks have the same weights, and the smallest numbers are numbers, whichever tests came before in this process."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # which `pick_device` sets


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and parity cases; tests that need it skip without."""
    folder = os.environ.get("SEG_SHARED")
    if not folder:
        pytest.skip("SEG_SHARED is not set: no real data, no parity cases")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Eight training and three validation pictures of the demo kind, smaller; read only."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "WIDTH", WIDTH)
        patch.setattr(demo, "HEIGHT", HEIGHT)
        demo.draw_demo(root, train=8, val=3, seed=1)
    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder of untrained checkpoints: of the data's classes, and of three."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for name, classes in (("seven.pt", demo.CLASSES), ("three.pt", ("a", "b", "c"))):
        config = Config(method=CC4SConfig(soft_entropy=1.0), model=ModelConfig(backbone="resnet18"))
        save_checkpoint(folder / name, build_method(config.method, config.model, len(classes)), config, classes)
    (folder / "garbage.pt").write_bytes(b"no checkpoint")
    return folder


@pytest.fixture
def root(tiny, tmp_path):
    """A copy of the tiny data set that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "root")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs an entry point's `main` with arguments in this process: (exit code, standard output, standard error)."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(main)
        return caught.value.code or 0, *capsys.readouterr()

    return call
