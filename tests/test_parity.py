"""Networks and losses equal the published ones, in the cases of $SEG_SHARED/reference."""

import json

import numpy as np
import pytest
import torch

from datasets import CLASS_LISTS
from engine.checkpoint import load_model, model_of
from engine.published import convert
from losses.cross_image import cosine_map, map_consistency, masked_mean
from losses.eigenspace import eigenspace_consistency
from losses.label_preference import label_preference
from losses.rectified_cross_entropy import rectification, rectified_cross_entropy
from losses.scribble_cross_entropy import scribble_cross_entropy
from losses.soft_entropy import soft_entropy
from methods.views import flip_view
from models.local_aggregation import local_aggregation
from ops.resizing import upsample
from tools import convert_checkpoint


def published(name, fill, reference):
    """The content of a checkpoint of the case's network as the authors save it, with the published weight names."""
    shapes = json.loads((reference / f"{name}.keys.json").read_text())
    state = fill.fill_state_dict({key: tuple(shape) for key, shape in shapes.items()})
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}, "best_pred": np.float64(0.5)}


def network_of(name, fill, reference, shrink=1):
    return model_of(convert(published(name, fill, reference), name, shrink), name).network


def assert_close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest published value."""
    theirs = torch.as_tensor(theirs, dtype=torch.float32)
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < tolerance, f"relative difference {difference:.2e}"


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_random_walk_network_equals_the_published_network(reference, fill, shrink):
    case = np.load(reference / f"cc4s_rw_resnet50_shrink{shrink}.npz")
    network = network_of("cc4s_rw_resnet50", fill, reference, shrink)
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


def test_the_baseline_network_equals_the_published_network(reference, fill):
    case = np.load(reference / "cc4s_baseline_resnet50.npz")
    network = network_of("cc4s_baseline_resnet50", fill, reference)
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        assert_close(network.aspp(network.backbone(image)[-1]), case["logits"])


def test_cisc_rs_deeplabv3plus_equals_the_published_network(reference, fill):
    case = np.load(reference / "cisc_r_deeplabv3plus_resnet50.npz")
    network = network_of("cisc_r_deeplabv3plus_resnet50", fill, reference)
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        feature, logits = network.feature(image), network(image)
    assert list(feature.shape) == case["feature_shape"].tolist()
    assert_close(feature.mean(dim=(2, 3)), case["feature_mean"], 1e-5)
    assert_close(logits, case["logits"], 1e-5)


def test_cisc_rs_losses_equal_the_published_losses(reference):
    case = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(reference / "cisc_r_parts.npz").items()}
    features, labels = (case["feat1"], case["feat2"]), (case["mask1"], case["mask2"])
    maps = (case["map1"].bool(), case["map2"].bool())
    consistency = torch.zeros(())
    similar = []
    for own, other in ((0, 1), (1, 0)):
        coarse = cosine_map(features[own], masked_mean(features[other], maps[other]))
        similar.append(upsample(coarse, maps[own].shape[-2:], align_corners=False)[:, 0])
        consistency += map_consistency(similar[-1], maps[own], labels[own])
    assert_close(similar[0], case["similarity_map"])
    assert consistency.item() == pytest.approx(2.544366, rel=1e-6)
    valid = (labels[0] != 255).float().mean()  # the release divides by all pixels
    rectified = rectified_cross_entropy(case["logits"], labels[0], rectification(maps[0], similar[0]))
    assert (rectified * valid).item() == pytest.approx(1.353994, rel=1e-6)


def test_the_eigenspace_loss_equals_the_published_loss(reference):
    case = np.load(reference / "cc4s_losses.npz")
    energy, view_energy = torch.from_numpy(case["energy_a"]), torch.from_numpy(case["energy_b"])
    one = torch.eye(energy.shape[1]).expand_as(energy)  # Q = E and K = 1 give the energies E
    kl = eigenspace_consistency(energy, one, view_energy, one, trace_weight=0)
    assert kl.item() == pytest.approx(float(case["kl_mean"]), rel=1e-4)
    loss = eigenspace_consistency(energy, one, view_energy, one)
    assert loss.item() == pytest.approx(float(case["eig_loss"]), rel=1e-4)


def test_the_flip_view_equals_the_published_permutation(reference):
    """The flip view compares positions in the order of the published permutation of both axes."""
    case = np.load(reference / "cc4s_losses.npz")
    height, width = int(case["flip_h"]), int(case["flip_w"])
    view = flip_view(torch.zeros(1, 3, 8 * (height - 1) + 1, 8 * (width - 1) + 1))
    positions = view.of_view(torch.arange(height * width).view(1, 1, height, width)).flatten()
    energy = torch.from_numpy(case["energy_b"])
    assert torch.equal(energy[:, positions][:, :, positions], torch.from_numpy(case["energy_b_flipped"]))


def test_soft_entropy_equals_the_published_loss(reference):
    case = np.load(reference / "cc4s_losses.npz")
    logits = torch.from_numpy(case["logits"])
    masked = soft_entropy(logits, torch.from_numpy(case["boundary"]) == 255)
    assert masked.item() == pytest.approx(float(case["entropy_masked"]), rel=1e-5)
    nowhere = torch.zeros(case["boundary"].shape, dtype=torch.bool)
    assert soft_entropy(logits, nowhere).item() == pytest.approx(float(case["entropy_plain"]), rel=1e-5)


def test_the_blpseg_network_equals_the_published_network(reference, fill):
    case = np.load(reference / "blpseg_resnet50.npz")
    network = network_of("blpseg_resnet50", fill, reference)
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        assert_close(network(image), case["logits"])


def test_blpseg_aggregation_and_losses_equal_the_published_ones(reference):
    case = np.load(reference / "blpseg_parts.npz")
    parts = {name: torch.from_numpy(case[name]) for name in case.files}
    assert_close(local_aggregation(parts["lam_logits"], parts["lam_feature"], float(case["lam_sigma"])), case["lam_out"])
    label, unlabelled = parts["scribble_label"], int(case["unlabelled_class"])
    scribbles, outside = label.where(label != unlabelled, 255), label == int(case["ignore"])
    logits, scribble_logits = parts["seg_logits"], parts["scribble_logits"]
    loss = label_preference(logits, scribble_logits, scribbles, float(case["gamma"]))
    assert loss.item() == pytest.approx(float(case["blp_loss"]), rel=1e-5)
    loss = scribble_cross_entropy(scribble_logits, scribbles, outside, float(case["unlabelled_weight"]))
    assert loss.item() == pytest.approx(float(case["scribble_ce"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cc4s_rw_resnet50", "cc4s_baseline_resnet50", "blpseg_resnet50"])
def test_published_files_load_directly_and_after_conversion(reference, fill, name, tmp_path, cli):
    file = tmp_path / "model_best.pth.tar"
    torch.save(published(name, fill, reference), file)
    assert cli(convert_checkpoint.main, file, "--out", tmp_path / "best.pt")[0] == 0
    direct, converted = load_model(file), load_model(tmp_path / "best.pt")
    assert direct.classes == converted.classes == CLASS_LISTS["voc"]
    image = fill.image(0, 1, 65, 65)
    with torch.no_grad():
        assert torch.equal(direct.predict(image), converted.predict(image))
    code, _, error = cli(convert_checkpoint.main, file, "--out", tmp_path / "best.pt")
    assert code == 2 and "is there already" in error


def test_recurseeds_network_equals_the_published_network(reference, fill):
    case = np.load(reference / "recurseed_deeplabv3plus_resnet50.npz")
    method = model_of(convert(published("recurseed_deeplabv3plus_resnet50", fill, reference), "file"), "file")
    image = fill.image(int(case["seed"]), int(case["batch"]), int(case["height"]), int(case["width"]))
    with torch.no_grad():
        activations = method.network.tags(method.network.encode(image)[1])
        assert_close(activations, case["cam_features"], 1e-5)
        assert_close(activations.mean(dim=(2, 3)), case["cls_logits"], 1e-5)
        assert_close(method.network(image), case["seg_logits"], 1e-5)
        assert_close(method.predict(image), case["seg_logits"], 1e-5)
