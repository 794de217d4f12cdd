"""Self-correlation (SCG) and pixel-adaptive refinement (PAMR): parity with the published functions, loops, and properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_losses import normal
from test_parity import assert_close

from benchmarks import textbook
from ops.pamr import pamr
from ops.self_correlation import class_maps, self_correlation


def parts(reference):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(reference / "recurseed_parts.npz").items()}


def test_self_correlation_class_maps_and_pamr_equal_the_published_functions(reference):
    case = parts(reference)
    correlations = [self_correlation(case[name]) for name in ("feature_c3", "feature_c4")]
    assert_close(sum(correlations), case["hsc"])
    assert_close(class_maps(correlations, case["cam"]), case["scm"])
    refined = pamr(case["pamr_image"], case["pamr_mask"], int(case["pamr_iterations"]), case["pamr_dilations"].tolist())
    assert_close(refined, case["pamr_out"])


def test_the_formulas_of_the_benchmark_equal_the_published_functions(reference):
    case = parts(reference)
    features = [case[name] for name in ("feature_c3", "feature_c4")]
    assert_close(textbook.grown_maps(features, case["cam"]), case["scm"])
    dilations = case["pamr_dilations"].tolist()
    refined = textbook.pamr(case["pamr_image"], case["pamr_mask"], int(case["pamr_iterations"]), dilations)
    assert_close(refined, case["pamr_out"])


def loop_correlation(features, first, second):
    """One image, position by position: features (D, N) -> (N, N)."""
    count = features.shape[1]
    similar = torch.zeros(count, count, dtype=features.dtype)
    for i in range(count):
        for j in range(count):
            cosine = F.cosine_similarity(features[:, i], features[:, j], dim=0)
            similar[i, j] = cosine if cosine >= first else 0
    one, steps = similar.clone(), similar.clone()
    steps.fill_diagonal_(0)
    for j in range(count):
        one[:, j] = similar[:, j] / (similar[:, j].sum() + 1e-10)
        steps[:, j] = steps[:, j] / (steps[:, j].sum() + 1e-10)
    two = steps @ steps
    for j in range(count):
        two[:, j] = two[:, j] / (two[:, j].sum() + 1e-10)
    two[two < second / count] = 0
    both = torch.maximum(one, two)
    for j in range(count):
        both[:, j] = both[:, j] / (both[:, j].sum() + 1e-10)
    return both


def scaled(values):
    return (values - values.min()) / (values.max() - values.min() + 1e-10)


def loop_maps(correlation, cam, foreground, background):
    """One image, class by class and seed by seed: correlation (N, N), cam (K, N) -> (K, N)."""
    maps = []
    for activation in cam:
        grown = []
        for seeds in (activation >= foreground, activation <= background):
            total = torch.zeros_like(activation)
            for seed in seeds.nonzero().flatten().tolist():
                total = total + scaled(correlation[:, seed])
            grown.append(scaled(total))
        maps.append(scaled((grown[0] - grown[1]).clamp(min=0)))
    return torch.stack(maps)


def test_self_correlation_and_class_maps_equal_loops():
    features = [normal(2, 5, 3, 4), normal(2, 7, 3, 4, seed=1)]
    cam = torch.rand(2, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cam[0, 1] = 0  # a class without seeds of the foreground
    correlations = [self_correlation(one) for one in features]
    for image in range(2):
        wanted = sum(loop_correlation(one[image].flatten(1), 0.5, 0.1) for one in features)
        torch.testing.assert_close(sum(correlations)[image], wanted, rtol=1e-10, atol=1e-12)
        maps = loop_maps(wanted, cam[image].flatten(1), 0.3, 0.05)
        torch.testing.assert_close(class_maps(correlations, cam)[image].flatten(1), maps, rtol=1e-9, atol=1e-12)
    assert (class_maps(correlations, cam)[0, 1] == 0).all()


def test_padding_takes_no_part_in_the_class_maps():
    """The maps of an image in a padded batch are those of the image alone."""
    features, cam = normal(1, 5, 3, 4), torch.rand(1, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alone = class_maps([self_correlation(features)], cam)
    large = 10 * normal(1, 5, 5, 6, seed=3)
    large[:, :, :3, :4] = features
    inside = F.pad(torch.ones(1, 3, 4, dtype=torch.bool), (0, 2, 0, 2)).flatten(1)
    padded = class_maps([self_correlation(large, inside=inside)], F.pad(cam, (0, 2, 0, 2)), inside=inside)
    torch.testing.assert_close(padded, F.pad(alone, (0, 2, 0, 2)), rtol=1e-12, atol=1e-12)


def test_constant_and_zero_features_give_finite_maps():
    cam = torch.rand(1, 2, 3, 3)
    for features in (torch.ones(1, 4, 3, 3), torch.zeros(1, 4, 3, 3)):
        correlation = self_correlation(features)
        assert correlation.isfinite().all() and class_maps([correlation], cam).isfinite().all()


def test_self_correlation_and_pamr_are_float32_under_autocast():
    features, images, masks = torch.randn(1, 4, 5, 5), torch.rand(1, 3, 12, 12), torch.rand(1, 2, 12, 12)
    plain = self_correlation(features), pamr(images, masks, 2, (1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = self_correlation(features), pamr(images, masks, 2, (1, 2))
    for ours, theirs in zip(cast, plain, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def loop_pamr(image, mask, iterations, dilations):
    """One image, pixel by pixel: image (3, H, W), mask (K, H, W)."""
    _, height, width = image.shape

    def at(maps, y, x):
        return maps[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    offsets = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    for _ in range(iterations):
        refined = torch.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                around = torch.stack([at(image, y + a, x + b) for a, b in offsets])
                centre = image[:, y, x]
                deviation = torch.cat([around, centre.expand(len(dilations), 3)]).std(dim=0)
                energy = (-(around - centre).abs() / (1e-8 + 0.1 * deviation)).mean(dim=1)
                weight = energy.softmax(dim=0)
                refined[:, y, x] = sum(w * at(mask, y + a, x + b) for w, (a, b) in zip(weight, offsets, strict=True))
        mask = refined
    return mask


def test_pamr_equals_a_loop_over_the_pixels():
    image, mask = normal(1, 3, 6, 7), normal(1, 2, 6, 7, seed=1)
    torch.testing.assert_close(pamr(image, mask, 2, (1, 3))[0], loop_pamr(image[0], mask[0], 2, (1, 3)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gain, offset", [(7.0, 0.0), (0.2, 300.0)])
def test_pamr_keeps_constants_and_sums_and_ignores_gain_and_offset(gain, offset):
    image = torch.rand(2, 3, 20, 24, dtype=torch.float64)
    masks = torch.rand(2, 3, 20, 24, dtype=torch.float64)
    masks[:, 2] = 1 - masks[:, 0] - masks[:, 1]
    refined = pamr(image, masks)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(2, 20, 24, dtype=torch.float64))
    torch.testing.assert_close(pamr(image, torch.full_like(masks, 0.3)), torch.full_like(masks, 0.3))
    torch.testing.assert_close(pamr(gain * image + offset, masks), refined, rtol=1e-4, atol=1e-6)


def test_pamr_moves_a_mask_to_the_edge_of_the_image():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1  # the edge
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 11:] = 1  # three columns too far right
    refined = pamr(image, mask, 30, (1, 2, 4))[0, 0, 8]
    assert refined[9] > 0.5 and refined[6] < 0.05
