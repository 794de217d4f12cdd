"""Value and gradient of the losses compared with plain formulas."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from watching import largest_tensor

from config import ModelConfig
from datasets.transforms import normalise, unit_colours
from losses import gated_crf as crf_loss
from losses.colour_constraint import colour_constraint
from losses.eigenspace import eigenspace_consistency
from losses.feature_consistency import feature_consistency
from losses.partial_cross_entropy import partial_cross_entropy
from losses.soft_entropy import soft_entropy
from methods import build_method
from methods.cc4s import CC4SConfig
from ops import pairs


def normal(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


# Partial cross-entropy


def test_partial_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, label = normal(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    label[0, :2] = 255
    terms = [
        -math.log(math.exp(logits[b, label[b, y, x], y, x]) / sum(math.exp(logits[b, c, y, x]) for c in range(3)))
        for b in range(2) for y in range(4) for x in range(5) if label[b, y, x] != 255
    ]  # fmt: skip
    assert partial_cross_entropy(logits, label).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_partial_cross_entropy_ignores_logits_of_unlabelled_pixels():
    logits, label = normal(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    label[0, 2:] = 255
    changed = logits.clone()
    changed[:, :, 2:] = 1e4
    assert partial_cross_entropy(changed, label) == partial_cross_entropy(logits, label)


@pytest.mark.parametrize("loss", [
    lambda logits: partial_cross_entropy(logits, torch.full((2, 4, 4), 255)),
    lambda logits: soft_entropy(logits, torch.ones(2, 4, 4, dtype=torch.bool)),
    lambda logits: colour_constraint(logits, torch.zeros(2, 4, 4).int(), torch.tensor([[0, 1]]), torch.ones(1), 2)[0],
    lambda logits: colour_constraint(logits, torch.zeros(2, 4, 4).int(), torch.zeros(0, 2).long(), torch.zeros(0), 1)[0],
])  # fmt: skip
def test_losses_without_counted_pixels_are_zero_with_zero_gradient(loss):
    logits = normal(2, 3, 4, 4).requires_grad_()
    value = loss(logits)
    (gradient,) = gradients(value, logits)
    assert value.item() == 0
    assert (gradient == 0).all()


# Soft entropy


def test_soft_entropy_is_the_mean_entropy_away_from_boundaries():
    logits = normal(2, 3, 4, 5)
    boundary = torch.zeros(2, 4, 5, dtype=torch.bool)
    boundary[:, 1] = True
    total, count = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if not boundary[b, y, x]:
                    exponentials = [math.exp(logits[b, c, y, x]) for c in range(3)]
                    p = [e / sum(exponentials) for e in exponentials]
                    total -= sum(q * math.log(q) for q in p)
                    count += 1
    assert soft_entropy(logits, boundary).item() == pytest.approx(total / count, rel=1e-12)
    changed = logits.clone()
    changed[:, :, 1] = 7.0
    assert soft_entropy(changed, boundary) == soft_entropy(logits, boundary)


def test_soft_entropy_of_a_certain_prediction_is_zero_with_finite_gradient():
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    value = soft_entropy(logits, torch.zeros(1, 1, 1, dtype=torch.bool))
    assert value.item() == 0
    assert torch.isfinite(gradients(value, logits)[0]).all()


# Gated CRF


def test_the_gated_crf_equals_a_loop_over_all_pairs(monkeypatch):
    monkeypatch.setattr(crf_loss, "RADIUS", 2)
    logits, images = normal(2, 3, 5, 6).requires_grad_(), torch.rand(2, 3, 5, 6, dtype=torch.float64) / 4
    outside = torch.zeros(2, 5, 6, dtype=torch.bool)
    outside[1, :, 4:] = True
    p, total = logits.softmax(1), 0.0
    pixels = [(b, y, x) for b in range(2) for y in range(5) for x in range(6) if not outside[b, y, x]]
    for (b, y, x), (b2, y2, x2) in product(pixels, pixels):
        if b == b2 and (y, x) != (y2, x2) and max(abs(y - y2), abs(x - x2)) <= 2:
            colour = (images[b, :, y, x] - images[b, :, y2, x2]).square().sum()
            kernel = torch.exp(-((y - y2) ** 2 + (x - x2) ** 2) / 72 - colour / 0.02)
            total = total + kernel * (1 - p[b, :, y, x] @ p[b, :, y2, x2])
    want = total / len(pixels)
    got = crf_loss.gated_crf(logits, images, outside)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, logits), gradients(want, logits))
    certain = torch.zeros(1, 3, 4, 4)
    certain[:, 1] = 99
    assert crf_loss.gated_crf(certain, torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)).item() < 1e-6
    nothing = crf_loss.gated_crf(logits, images, torch.ones_like(outside))
    assert nothing.item() == 0 and gradients(nothing, logits)[0].eq(0).all()


def test_the_method_gives_the_gated_crf_colours_from_0_to_1():
    image = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    torch.testing.assert_close(unit_colours(normalise(image)), image / 255)
    method = build_method(CC4SConfig(network="baseline", gated_crf=0.5), ModelConfig("resnet18", "none"), 3).eval()
    batch = {"image": normalise(image), "label": torch.zeros(2, 33, 33, dtype=torch.int64),
             "outside": torch.zeros(2, 33, 33, dtype=torch.bool)}  # fmt: skip
    losses = method(batch)
    assert list(losses) == ["cross_entropy", "gated_crf"]
    want = 0.5 * crf_loss.gated_crf(method.predict(batch["image"]), image / 255, batch["outside"])
    torch.testing.assert_close(losses["gated_crf"], want, rtol=1e-4, atol=1e-5)


# Eigenspace consistency


def dense_eigenspace(query, key, view_query, view_key, axis="query", kl="entries", trace_weight=0.01):
    """The formula with full N x N matrices."""
    dim = 1 if axis == "query" else 2
    s, view_s = (q @ k.mT for q, k in ((query, key), (view_query.detach(), view_key.detach())))
    s, view_s = s.softmax(dim), view_s.softmax(dim)
    divergence = (view_s * (view_s.log() - s.log())).sum() / len(s)
    divergence = divergence / (s.shape[1] ** 2 if kl == "entries" else s.shape[1])
    trace = lambda m: m.diagonal(dim1=1, dim2=2).sum(1)  # noqa: E731
    return divergence + trace_weight * (trace(s) - trace(view_s)).abs().mean()


@pytest.mark.parametrize("held", [1, 5 * 13, 13 * 13, 2 * 13 * 13, 10**6])  # 1 or 5 columns, 1, 2 or all 3 images
@pytest.mark.parametrize("axis", ["query", "key"])
@pytest.mark.parametrize("kl", ["entries", "rows"])
def test_eigenspace_equals_the_dense_formula(monkeypatch, held, axis, kl):
    monkeypatch.setitem(pairs.HELD, "cpu", held)
    query, key, view_query, view_key = (normal(3, 13, 4, seed=s).requires_grad_() for s in range(4))
    got = eigenspace_consistency(query, key, view_query, view_key, axis, kl, 0.3)
    want = dense_eigenspace(query, key, view_query, view_key, axis, kl, 0.3)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for ours, dense in zip(gradients(2 * got, query, key), gradients(2 * want, query, key), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-14)
    assert torch.autograd.grad(got, view_query, allow_unused=True)[0] is None


def test_eigenspace_equals_the_log_sum_exp_form():
    """The KL term can also be computed from attention outputs and their log-sum-exp, without any N x N matrix."""
    query, key, view_query, view_key = (normal(2, 9, 4, seed=s) for s in range(4))
    energy, view_energy = query @ key.mT, view_query @ view_key.mT
    total, view_total = energy.logsumexp(1), view_energy.logsumexp(1)
    p = view_energy.softmax(1)
    columns = total - view_total + (view_key * (p.mT @ view_query)).sum(-1) - (key * (p.mT @ query)).sum(-1)
    got = eigenspace_consistency(query, key, view_query, view_key, kl="rows", trace_weight=0)
    assert got.item() == pytest.approx(columns.mean().item(), rel=1e-10)


def test_eigenspace_is_zero_for_equal_and_finite_for_huge_energies():
    query, key = normal(1, 300, 8, scale=40).float().requires_grad_(), normal(1, 300, 8, seed=1, scale=40).float()
    assert (query @ key.mT).abs().max() > 1e4
    assert eigenspace_consistency(query, key, query, key).item() == pytest.approx(0, abs=1e-6)
    value = eigenspace_consistency(query, key, key, query.detach())
    assert torch.isfinite(value) and torch.isfinite(gradients(value, query)[0]).all()


def whole_numbers(*shape, seed):
    """Whole numbers. Their dot products exceed 1e4, and float32 still holds them exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-60, 61, shape, generator=generator).double()


def relative_difference(ours, exact):
    """The norm of the difference, relative to the norm of the exact value."""
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("axis", ["query", "key"])
@pytest.mark.parametrize("make", [lambda seed: normal(2, 90, 8, seed=seed), lambda seed: whole_numbers(2, 90, 8, seed=seed)])
def test_eigenspace_in_float32_equals_the_dense_formula_in_float64(axis, make):
    exact = [make(seed).requires_grad_() for seed in range(4)]
    single = [part.detach().float().requires_grad_() for part in exact]
    got, want = (f(*parts, axis=axis) for f, parts in ((eigenspace_consistency, single), (dense_by_logs, exact)))
    assert relative_difference(got.detach(), want.detach()) < 1e-5
    for ours, dense in zip(gradients(got, *single[:2]), gradients(want, *exact[:2]), strict=True):
        assert relative_difference(ours, dense) < 1e-5


def dense_by_logs(query, key, view_query, view_key, axis):
    """`dense_eigenspace` with logarithms, for cases where some entries of S round to 0."""
    dim = 1 if axis == "query" else 2
    log_s, view_log_s = ((q @ k.mT).log_softmax(dim) for q, k in ((query, key), (view_query.detach(), view_key.detach())))
    divergence = (view_log_s.exp() * (view_log_s - log_s)).mean()
    traces = [m.exp().diagonal(dim1=1, dim2=2).sum(1) for m in (log_s, view_log_s)]
    return divergence + 0.01 * (traces[0] - traces[1]).abs().mean()


def test_eigenspace_holds_no_square_matrix():
    query, key = normal(1, 2500, 4).float().requires_grad_(), normal(1, 2500, 4, seed=1).float()
    largest = largest_tensor(lambda: eigenspace_consistency(query, key, key, query.detach()).backward())
    assert largest <= pairs.HELD["cpu"] < 2500**2


def test_eigenspace_refuses_unknown_options():
    query = normal(1, 4, 2)
    with pytest.raises(ValueError, match="axis"):
        eigenspace_consistency(query, query, query, query, axis="rows")
    with pytest.raises(ValueError, match="kl"):
        eigenspace_consistency(query, query, query, query, kl="all")


def test_feature_consistency_is_the_mean_square_without_view_gradient():
    features, view = normal(2, 5, 3).requires_grad_(), normal(2, 5, 3, seed=1).requires_grad_()
    loss = feature_consistency(features, view)
    assert loss.item() == pytest.approx(((features - view) ** 2).mean().item())
    assert torch.autograd.grad(loss, view, allow_unused=True)[0] is None


# Colour constraint


def graph(seed=0):
    """Two images of 6 x 7. Superpixel ids are distinct across the batch, -1 in a corner. Edges stay within an image."""
    rng = np.random.default_rng(seed)
    superpixel = torch.from_numpy(rng.integers(0, 5, (2, 6, 7))).int()
    superpixel[1] += 5
    superpixel[:, :2, :2] = -1
    edges = torch.tensor([[0, 1], [1, 2], [3, 4], [0, 4], [5, 6], [6, 9], [7, 8]])
    return superpixel, edges, torch.from_numpy(rng.uniform(0.1, 0.8, len(edges)))


def dense_colour(logits, superpixel, edges, weights):
    """(2 / ||W||) tr(Y^T L Y) with W, L and Y as matrices."""
    count = int(edges.max()) + 1
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)
    means, present = [], []
    for number in range(count):
        inside = superpixel == number
        present.append(bool(inside.any()))
        means.append(probabilities[inside].mean(0) if present[-1] else torch.zeros(logits.shape[1]).double())
    w = torch.zeros(count, count, dtype=torch.float64)
    for (a, b), weight in zip(edges.tolist(), weights, strict=True):
        if present[a] and present[b]:
            w[a, b] = w[b, a] = weight
    laplacian = w.sum(1).diag() - w
    y = torch.stack(means)
    return 2 / w.sum() * torch.trace(y.T @ laplacian @ y)


def test_colour_constraint_equals_the_laplacian_form():
    logits = normal(2, 3, 6, 7).requires_grad_()
    superpixel, edges, weights = graph()
    got, _ = colour_constraint(logits, superpixel, edges, weights, 10)
    want = dense_colour(logits, superpixel, edges, weights)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    torch.testing.assert_close(gradients(got, logits), gradients(want, logits), rtol=1e-10, atol=1e-14)


def test_colour_constraint_in_float32_equals_the_form_in_float64():
    logits = normal(2, 3, 6, 7).requires_grad_()
    single = logits.detach().float().requires_grad_()
    superpixel, edges, weights = graph()
    got, _ = colour_constraint(single, superpixel, edges, weights.float(), 10)
    want = dense_colour(logits, superpixel, edges, weights)
    assert relative_difference(got.detach(), want.detach()) < 1e-5
    assert relative_difference(*(gradients(loss, of)[0] for loss, of in ((got, single), (want, logits)))) < 1e-5


def test_the_colour_constraint_ignores_missing_superpixels():
    logits = normal(2, 3, 6, 7)
    superpixel, edges, weights = graph()
    superpixel[superpixel == 1] = -1
    got, weight = colour_constraint(logits, superpixel, edges, weights, 10)
    kept = (edges != 1).all(1)
    assert got.item() == pytest.approx(dense_colour(logits, superpixel, edges, weights).item(), rel=1e-12)
    torch.testing.assert_close((got, weight), colour_constraint(logits, superpixel, edges[kept], weights[kept], 10))
    assert weight.item() == pytest.approx(weights[kept].sum().item())


def test_colour_constraint_is_0_for_equal_and_2_for_opposite_predictions():
    superpixel = torch.tensor([[[0, 1]]]).int()
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0]]).view(1, 2, 1, 2)
    edge, weight = torch.tensor([[0, 1]]), torch.tensor([0.3])
    assert colour_constraint(logits, superpixel, edge, weight, 2)[0].item() == pytest.approx(2)
    assert colour_constraint(torch.zeros(1, 2, 1, 2), superpixel, edge, weight, 2)[0].item() == 0
