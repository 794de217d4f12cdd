"""Released checkpoint files: which ones load, and which ones are refused without running their code."""

import os
import pickle

import numpy as np
import pytest
import torch
import torchvision

import evaluate
from config import ModelConfig
from datasets.official.acdc import ACDC_CLASSES
from engine.checkpoint import load_model, model_of
from engine.published import convert, load_file
from errors import UserError
from methods import build_method
from methods.blpseg import BLPSEG, BLPSegConfig
from methods.cc4s import BASELINE, RANDOM_WALK, CC4SConfig
from methods.recurseed import RecurSeedConfig
from models.recurseed import RELEASES
from tools import convert_checkpoint

NETWORKS = {
    "random_walk": (CC4SConfig(network="random_walk"), RANDOM_WALK),
    "baseline": (CC4SConfig(network="baseline"), BASELINE),
    "blpseg": (BLPSegConfig(width=64), BLPSEG),
}


def released(network, backbone="resnet18", classes=21):
    """The content of a released file, with our weights under the published names, and our method."""
    settings, names = NETWORKS[network]
    method = build_method(settings, ModelConfig(backbone=backbone), classes)
    state = {}
    for key, value in method.network.state_dict().items():
        old, new = next((old, new) for old, new in names.items() if key.startswith(new))
        state[f"module.{old}{key.removeprefix(new)}"] = value
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    sum(parameter.sum() for parameter in method.parameters()).backward()
    optimizer.step()
    # mIoU, the IoU of every class, pixel accuracy: the types that the release's `validate_tnt` returns.
    scores = (np.float64(0.71), np.linspace(0, 1, classes), 0.93)
    return {"epoch": 7, "state_dict": state, "best_pred": scores, "optimizer": optimizer.state_dict()}, method


def test_convert_checkpoint_takes_shrink_and_class_names(tmp_path, cli):
    content, _ = released("random_walk", classes=4)
    torch.save(content, tmp_path / "model_best.pth.tar")
    flags = ["--shrink", "2", "--classes", "acdc", "--out", tmp_path / "best.pt"]
    assert cli(convert_checkpoint.main, tmp_path / "model_best.pth.tar", *flags)[0] == 0
    method = load_model(tmp_path / "best.pt")
    assert method.network.walk.shrink == 2 and method.classes == ACDC_CLASSES
    flags = ["--classes", "voc", "--out", tmp_path / "other.pt"]
    code, _, error = cli(convert_checkpoint.main, tmp_path / "model_best.pth.tar", *flags)
    assert code == 2 and "4 classes, but --classes has 21" in error and not (tmp_path / "other.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("backbone", "classes"), [("resnet18", 21), ("resnet34", 60), ("resnet101", 5)])
def test_convert_finds_backbone_number_of_classes_and_weights(network, backbone, classes):
    content, method = released(network, backbone, classes)
    converted = convert(content, "file")
    assert converted["config"]["model"]["backbone"] == backbone and len(converted["classes"]) == classes
    ours = method.state_dict()
    assert ours.keys() == converted["method"].keys()
    assert all(torch.equal(ours[key], value) for key, value in converted["method"].items())


def test_shrink_is_refused_for_a_network_without_the_walk():
    for network in ("baseline", "blpseg"):
        with pytest.raises(UserError, match="this network has none"):
            convert(released(network)[0], "file", shrink=2)


def test_a_released_blpseg_state_dict_loads(tmp_path):
    """BLPSeg's authors save the bare state dict. It also holds the Gaussian of all pairs of positions."""
    content, method = released("blpseg")
    state = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    torch.save(state | {"distance_prob": torch.ones(1, 16, 16)}, tmp_path / "BLPSeg_resnet18.pth")
    loaded = load_model(tmp_path / "BLPSeg_resnet18.pth")
    assert loaded.config.width == 64
    assert all(torch.equal(method.state_dict()[name], value) for name, value in loaded.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_both_releases_of_recurseed_load(tmp_path, release):
    method = build_method(RecurSeedConfig(), ModelConfig(backbone="resnet50", weights="none"), 21)
    names, classifier = RELEASES[release]
    state = {}
    for key, value in method.network.state_dict().items():
        old, new = next((old, new) for old, new in names.items() if key.startswith(new))
        state[old + key.removeprefix(new)] = value
    assert release in state and classifier in state
    torch.save(state, tmp_path / "last.pth")
    loaded = load_model(tmp_path / "last.pth")
    assert loaded.classes[1] == "aeroplane"
    for network in (loaded.network, loaded.average.module):
        assert all(torch.equal(method.network.state_dict()[name], value) for name, value in network.state_dict().items())


def test_the_multi_stage_network_of_recurseed_gives_one_line():
    names, classifier = RELEASES["decoder.low_block.conv.weight"]
    state = {name + "weight": torch.zeros(1) for name in names if name != "classifier."}
    state |= {classifier: torch.zeros(21, 256, 3, 3), "model.layer3.0.conv3.weight": torch.zeros(1)}
    state |= {f"model.layer3.{number}.conv1.weight": torch.zeros(1) for number in range(23)}
    with pytest.raises(UserError, match=r"holds another network \(recurseed, resnet101") as caught:
        model_of(convert(state, "file"), "file")
    assert len(str(caught.value).splitlines()) == 1


class OldNumpyPickler(pickle._Pickler):
    """Writes the functions of numpy with the module path that they had before numpy 2."""

    def save_global(self, obj, name=None):
        if getattr(obj, "__module__", "") == "numpy._core.multiarray":
            self.write(f"cnumpy.core.multiarray\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


class OldNumpy:
    """Looks like a pickle module to torch.save."""

    Pickler = OldNumpyPickler
    dump, dumps = staticmethod(pickle.dump), staticmethod(pickle.dumps)
    __name__ = "pickle"


def test_numpy_values_load_under_old_and_new_module_paths(tmp_path):
    content, _ = released("baseline")
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", pickle_module=OldNumpy)
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    for name, path, wrong in (("new.pth", new, old), ("old.pth", old, new)):
        written = (tmp_path / name).read_bytes()
        assert all(path + b"\n" + function in written for function in (b"scalar", b"_reconstruct")) and wrong not in written
        miou, iou, accuracy = load_file(tmp_path / name)["best_pred"]
        assert (miou, accuracy) == (0.71, 0.93) and np.array_equal(iou, np.linspace(0, 1, 21))
        assert len(load_model(tmp_path / name).classes) == 21


def test_an_array_of_objects_is_refused(tmp_path):
    content, _ = released("baseline")
    torch.save(content | {"best_pred": np.array([Malicious(f"touch {tmp_path}/ran")], dtype=object)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="holds more than tensors and numbers"):
        load_file(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["random_walk", "baseline"])
def test_released_checkpoints_load_and_evaluate(tiny, tmp_path, network, cli):
    content, _ = released(network, classes=7)
    torch.save(content, tmp_path / "model_best.pth.tar")
    flags = ["--data.root", tiny, "--workers", "0", "--out", tmp_path / "evaluation"]
    code, printed, error = cli(evaluate.main, "--checkpoint", tmp_path / "model_best.pth.tar", *flags)
    assert code == 0 and "pixel accuracy" in printed, error


class Malicious:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, legacy):
    content, _ = released("baseline")
    content["epoch"] = Malicious(f"touch {tmp_path}/ran")
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors and numbers") as caught:
        load_file(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_the_error_for_an_unknown_network_says_what_the_file_holds(tmp_path):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(UserError, match=r"torchvision weights of a resnet18: give them as --model.weights"):
        convert(weights, "file")
    with pytest.raises(UserError, match="holds weights of an unknown network"):
        convert({"weight": torch.ones(1)}, "file")
    with pytest.raises(UserError, match="neither a checkpoint of this project"):
        convert([1, 2], "file")
    content, _ = released("baseline")
    del content["state_dict"]["module.layer3.1.conv1.weight"]
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(UserError, match="first difference"):
        load_model(tmp_path / "part.pth")
