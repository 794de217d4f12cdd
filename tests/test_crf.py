"""The dense CRF: the lattice compared with the exact Gaussian, and mean field compared with pydensecrf."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
import predict
from config import CrfConfig
from datasets.drawing.demo import draw_picture
from datasets.files import read_image, read_label
from engine.crf import refine
from ops.permutohedral import PermutohedralLattice


def blurred_noise(classes, height, width, seed):
    """Probabilities (classes, height, width) of smooth random regions."""
    coarse = torch.randn(1, classes, height // 24 + 2, width // 24 + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(3 * coarse, (height, width), mode="bilinear")[0].softmax(dim=0)


@pytest.mark.parametrize(("dims", "spread", "tolerance"), [(1, 8, 0.1), (2, 2, 0.2), (3, 0.8, 0.3)])
def test_the_lattice_approximates_a_gaussian_filter(dims, spread, tolerance):
    generator = torch.Generator().manual_seed(0)
    features = spread * torch.randn(3000, dims, generator=generator)
    values = torch.rand(3000, 4, generator=generator)
    exact = torch.exp(-(torch.cdist(features, features) ** 2) / 2)
    ones = torch.ones(3000, 1)
    lattice = PermutohedralLattice(features)
    filtered = lattice.filter(values) / lattice.filter(ones)
    expected = (exact @ values) / (exact @ ones)
    constant = expected - values.mean(dim=0)
    assert (filtered - expected).norm() < tolerance * constant.norm(), "the error is much smaller than that of a constant"


def test_the_lattice_is_linear_and_symmetric():
    generator = torch.Generator().manual_seed(0)
    lattice = PermutohedralLattice(2 * torch.randn(500, 3, generator=generator))
    kernel = lattice.filter(torch.eye(500))
    assert (kernel >= 0).all()
    values = torch.randn(500, 7, generator=generator)
    torch.testing.assert_close(lattice.filter(values), kernel @ values, rtol=1e-4, atol=1e-4)
    # The lattice blurs along one axis after the other, so the kernel is symmetric except for the order of the axes.
    assert (kernel - kernel.T).abs().mean() < 0.05 * kernel.abs().mean()


def test_the_crf_spreads_certain_labels_up_to_an_image_edge():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    probabilities = torch.full((2, 40, 60), 0.5)
    probabilities[0, :, 22:30], probabilities[1, :, 22:30] = 0.9, 0.1
    probabilities[0, :, 30:38], probabilities[1, :, 30:38] = 0.1, 0.9
    marginals = refine(probabilities, image, "torch", CrfConfig())
    assert (marginals.argmax(dim=0) == (torch.arange(60) >= 30).long()).all()
    torch.testing.assert_close(marginals.sum(dim=0), torch.ones(40, 60))


def test_autocast_does_not_change_the_crf():
    image, _ = draw_picture(np.random.default_rng(0))
    probabilities = blurred_noise(3, *image.shape[:2], 0)
    expected = refine(probabilities, image, "torch", CrfConfig())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(refine(probabilities, image, "torch", CrfConfig()), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "parameters"),
    [
        (2, CrfConfig()),
        (60, CrfConfig(iterations=5, gaussian_sxy=1, bilateral_sxy=32, bilateral_srgb=13)),
        (21, CrfConfig(bilateral_sxy=80, bilateral_srgb=3, bilateral_compat=4)),
        (2, CrfConfig(bilateral_sxy=32, bilateral_srgb=3)),
        (7, CrfConfig(bilateral_sxy=3, bilateral_srgb=3)),
    ],
)
def test_the_crf_agrees_with_pydensecrf_on_drawn_pictures(classes, parameters):
    pytest.importorskip("pydensecrf")
    image, _ = draw_picture(np.random.default_rng(classes))
    probabilities = blurred_noise(classes, *image.shape[:2], classes)
    assert_agree(probabilities, image, parameters)


def assert_agree(probabilities, image, parameters):
    ours, theirs = (refine(probabilities, image, library, parameters) for library in ("torch", "pydensecrf"))
    difference = (ours - theirs).abs()
    # Ten steps amplify rounding at a pixel that is about to change its class: if the input of pydensecrf changes by 1e-8, its
    # marginal at such a pixel changes by 1e-4. The number of such pixels depends on the processor.
    assert (difference > 1e-4).double().mean() <= 1e-5
    assert difference.max() <= 1e-3 and difference.mean() <= 1e-7
    assert (ours.argmax(dim=0) == theirs.argmax(dim=0)).double().mean() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "sxy", "srgb"), [(21, 80, 13), (21, 32, 3), (2, 80, 3), (60, 32, 13)])
def test_the_crf_agrees_with_pydensecrf_on_photos(shared, classes, sxy, srgb):
    pytest.importorskip("pydensecrf")
    file = sorted((shared / "data/voc_mini/JPEGImages").glob("*.jpg"))[classes]
    image = read_image(file)
    parameters = CrfConfig(bilateral_sxy=sxy, bilateral_srgb=srgb)
    assert_agree(blurred_noise(classes, *image.shape[:2], classes), image, parameters)


@pytest.mark.slow
def test_evaluate_and_predict_use_the_output_of_the_crf(checkpoints, tiny, tmp_path, cli, monkeypatch):
    """A stand-in for the CRF returns class 3 everywhere. It runs once on the mean of two scales, or on each scale."""
    calls = []

    def to_class_3(probabilities, image, library, parameters):
        assert probabilities.shape[1:] == image.shape[:2]
        calls.append((library, parameters.bilateral_sxy))
        return torch.eye(7)[3].view(7, 1, 1).expand_as(probabilities).clone()

    for command in (evaluate, predict):
        monkeypatch.setattr(command, "refine", to_class_3)
    for name, flags, expected in (
        ("plain", [], []),
        ("torch", ["--crf", "torch"], [("torch", 80)] * 3),
        ("pydensecrf", ["--crf", "pydensecrf", "--crf_parameters.bilateral_sxy", "32"], [("pydensecrf", 32)] * 3),
        ("per scale", ["--crf", "torch", "--crf_per_scale"], [("torch", 80)] * 6),
    ):
        calls.clear()
        arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path / name]
        code, _, error = cli(evaluate.main, *arguments, "--inference.scales", "[0.5,1]", *flags)
        assert code == 0, error
        assert calls == expected, "three images, two scales"
        predicted = np.sum(json.loads((tmp_path / name / "metrics.json").read_text())["confusion_matrix"], axis=0)
        assert (predicted[3] == predicted.sum()) == bool(flags)

    without = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path / "x"]
    code, _, error = cli(evaluate.main, *without, "--crf_parameters.iterations", "3")
    assert code == 2 and "--crf_parameters requires --crf" in error

    images = ["--images", tiny, "--split", "val", "--out", tmp_path / "masks", "--crf", "torch"]
    assert cli(predict.main, "--checkpoint", checkpoints / "seven.pt", *images)[0] == 0
    masks = [read_label(path) for path in (tmp_path / "masks").glob("*.png")]
    assert len(masks) == 3 and all((mask == 3).all() for mask in masks)
