"""Agreement with the published networks and losses, by the cases of $SEG_SHARED/reference."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from losses.eigenspace import eigenspace_consistency
from losses.soft_entropy import soft_entropy
from models.cc4s import BaselineNet, RandomWalkNet

# Published name -> ours, by prefix.
RANDOM_WALK = {
    "model_sed.": "backbone.",
    "conv5a.": "reduce.",
    "PAM_Module.": "walk.",
    "conv51.": "refine.",
    "conv6.": "classifier.",
}
BASELINE = {
    **{f"layer5.aspp{n}.atrous_conv.": f"aspp.branches.{n - 1}.0." for n in range(1, 5)},
    **{f"layer5.aspp{n}.bn.": f"aspp.branches.{n - 1}.1." for n in range(1, 5)},
    "layer5.global_avg_pool.": "aspp.pooled.",
    "layer5.conv1.": "aspp.project.0.",
    "layer5.bn1.": "aspp.project.1.",
    "": "backbone.",
}


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "reference"


@pytest.fixture(scope="module")
def fill(reference):
    spec = importlib.util.spec_from_file_location("fill", reference / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_published(network, names, keys_file, fill):
    """Fills `network` with the case's weights under the published names, mapped; every weight of ours must get one."""
    filled = fill.fill_state_dict({key: tuple(shape) for key, shape in json.loads(keys_file.read_text()).items()})
    ours = {}
    for key, value in filled.items():
        prefix = next((old for old in names if key.startswith(old)), None)
        if prefix is not None:
            ours[names[prefix] + key.removeprefix(prefix)] = value
    network.load_state_dict(ours)
    return network.eval()


def assert_close(ours, theirs):
    """Within 1e-4 of the largest published value."""
    theirs = torch.as_tensor(theirs, dtype=torch.float32)
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < 1e-4, f"relative difference {difference:.2e}"


@pytest.mark.parametrize("shrink", [1, 2])
def test_random_walk_network(reference, fill, shrink):
    case = np.load(reference / f"cc4s_rw_resnet50_shrink{shrink}.npz")
    network = RandomWalkNet("resnet50", 21, shrink)
    load_published(network, RANDOM_WALK, reference / "cc4s_rw_resnet50.keys.json", fill)
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        features = network.features(image)
        walked, query, key = network.walk(features)
        logits = network.head(walked)
        energy = query.flatten(2).mT @ key.flatten(2)
    assert_close(features.mean(dim=(2, 3)), case["feature_mean"])
    assert_close(walked.mean(dim=(2, 3)), case["walked_mean"])
    assert_close(energy[:, 0], case["energy_row0"])
    assert_close(energy.sum(), case["energy_sum"])
    assert_close(logits, case["logits"])


def test_baseline_network(reference, fill):
    case = np.load(reference / "cc4s_baseline_resnet50.npz")
    network = load_published(BaselineNet("resnet50", 21), BASELINE, reference / "cc4s_baseline_resnet50.keys.json", fill)
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        assert_close(network.aspp(network.backbone(image)), case["logits"])


def test_eigenspace_loss(reference):
    case = np.load(reference / "cc4s_losses.npz")
    energy, view_energy = torch.from_numpy(case["energy_a"]), torch.from_numpy(case["energy_b"])
    one = torch.eye(energy.shape[1]).expand_as(energy)  # energies as products: Q = E, K = 1
    kl = eigenspace_consistency(energy, one, view_energy, one, trace_weight=0)
    assert kl.item() == pytest.approx(float(case["kl_mean"]), rel=1e-4)
    loss = eigenspace_consistency(energy, one, view_energy, one)
    assert loss.item() == pytest.approx(float(case["eig_loss"]), rel=1e-4)


def test_a_flip_is_an_index(reference):
    """The published permutation of both axes equals mirroring the positions of queries and keys."""
    case = np.load(reference / "cc4s_losses.npz")
    height, width = int(case["flip_h"]), int(case["flip_w"])
    positions = torch.arange(height * width).view(height, width).flip(1).reshape(-1)
    energy = torch.from_numpy(case["energy_b"])
    assert torch.equal(energy[:, positions][:, :, positions], torch.from_numpy(case["energy_b_flipped"]))


def test_soft_entropy(reference):
    case = np.load(reference / "cc4s_losses.npz")
    logits = torch.from_numpy(case["logits"])
    masked = soft_entropy(logits, torch.from_numpy(case["boundary"]) == 255)
    assert masked.item() == pytest.approx(float(case["entropy_masked"]), rel=1e-5)
    assert soft_entropy(logits).item() == pytest.approx(float(case["entropy_plain"]), rel=1e-5)
