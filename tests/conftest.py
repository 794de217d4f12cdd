"""Fixtures for all tests: real data and parity cases from $SEG_SHARED, and a tiny data set in VOC layout."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Tests run on the CPU: some compare exactly, and some start more processes than there are GPUs. Set before torch is imported.
if os.environ.get("SEG_TEST_CUDA"):  # for tests/test_cuda.py
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as `be_deterministic`; before the first cuBLAS call
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
    """Puts slow tests first. If a long test started last, one worker would run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def same_torch_state() -> None:
    """Resets the torch seed and the handling of denormal numbers, so that tests do not depend on earlier tests."""
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # `pick_device` changes it


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and parity cases. Without the folder, tests that need it are skipped."""
    folder = os.environ.get("SEG_SHARED")
    if not folder:
        pytest.skip("SEG_SHARED is not set: no real data, no parity cases")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def reference(shared) -> Path:
    """The folder of the published outputs."""
    return shared / "reference"


@pytest.fixture(scope="session")
def fill(reference) -> ModuleType:
    """The module that makes the weights and images of the parity cases."""
    spec = importlib.util.spec_from_file_location("fill", reference / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A data set of eight training and three validation pictures, like the demo but smaller. Tests must not change it."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "WIDTH", WIDTH)
        patch.setattr(demo, "HEIGHT", HEIGHT)
        demo.draw_demo(root, train=8, val=3, seed=1)
    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder of untrained checkpoints: one with the 7 classes of the data, one with 3 classes, and a broken file."""
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
    """Calls `main` of an entry point with arguments. Returns (exit code, standard output, standard error)."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(main)
        return caught.value.code or 0, *capsys.readouterr()

    return call
