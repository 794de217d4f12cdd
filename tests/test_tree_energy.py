"""The tree energy loss: the spanning tree and the filter equal plain loops over all pairs of positions."""

import math

import numpy as np
import pytest
import torch
from test_losses import gradients, normal

from config import ModelConfig
from losses.tree_energy import SIGMA, tree_energy
from methods import build_method
from methods.cc4s import CC4SConfig
from ops.resizing import resize
from ops.spanning_tree import spanning_trees, tree_filter


def kruskal(values):
    """The edges of the minimum spanning tree of a map (D, h, w), as {node: {neighbour: distance}}."""
    _, height, width = values.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for y2, x2 in ((y + 1, x), (y, x + 1)):
                if y2 < height and x2 < width:
                    distance = float((values[:, y, x] - values[:, y2, x2]).square().sum())
                    edges.append((distance, y * width + x, y2 * width + x2))
    group = list(range(height * width))
    tree = {node: {} for node in group}
    for distance, one, other in sorted(edges):
        if group[one] != group[other]:
            old, new = group[other], group[one]
            group = [new if g == old else g for g in group]
            tree[one][other] = tree[other][one] = distance
    return tree


def naive_filter(values, guide, sigma, counted=None):
    """values (C, h, w), guide (D, h, w) -> the weighted mean over all counted (h, w) positions, pair by pair."""
    tree, flat = kruskal(guide), values.flatten(1)
    result = torch.zeros_like(flat)
    for start in tree:
        distance, stack = {start: 0.0}, [start]
        while stack:
            node = stack.pop()
            for other, step in tree[node].items():
                if other not in distance:
                    distance[other] = distance[node] + step
                    stack.append(other)
        weights = torch.tensor([math.exp(-distance[node] / sigma) for node in range(len(tree))], dtype=flat.dtype)
        weights = weights if counted is None else weights * counted.flatten()
        result[:, start] = (flat * weights).sum(dim=1) / weights.sum() if weights.sum() > 0 else flat[:, start]
    return result.view_as(values)


@pytest.mark.parametrize("size", [(4, 5), (1, 6), (3, 1), (1, 1)])
def test_the_filter_equals_a_loop_over_all_pairs(size):
    values, guide = normal(2, 3, *size), normal(2, 4, *size, seed=1)
    counted = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) < 0.7
    counted[:, 0, 0] = True
    got = tree_filter(values, spanning_trees(guide), counted, 2.0)
    want = torch.stack([naive_filter(*parts[:2], 2.0, parts[2]) for parts in zip(values, guide, counted, strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_constant_map_gives_the_mean_and_an_edge_keeps_values_apart():
    values = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    flat = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    everywhere = torch.ones(1, 6, 6, dtype=torch.bool)
    got = tree_filter(values, spanning_trees(flat), everywhere)
    torch.testing.assert_close(got, values.mean(dim=(2, 3), keepdim=True).expand_as(values))
    flat[..., 3:] = 10
    got = tree_filter(values, spanning_trees(flat), everywhere)
    for half in (np.s_[..., :3], np.s_[..., 3:]):
        torch.testing.assert_close(got[half], values[half].mean(dim=(2, 3), keepdim=True).expand_as(values[half]))


@pytest.mark.parametrize("finer", [False, True])
def test_the_loss_is_the_mean_distance_from_the_filtered_prediction(finer):
    """On the features' grid, also where a decoder gives finer logits."""
    logits = normal(2, 3, *((7, 7) if finer else (4, 4))).float().requires_grad_()
    images, features = normal(2, 3, 13, 13, seed=1).float(), normal(2, 5, 4, 4, seed=2).float()
    unlabelled = torch.rand(2, 13, 13, generator=torch.Generator().manual_seed(0)) < 0.5
    outside = torch.zeros(2, 13, 13, dtype=torch.bool)
    outside[1, :, 10:] = True
    p = (resize(logits, (4, 4), align_corners=True) if finer else logits).softmax(1)
    colours, inside = images[..., ::4, ::4], ~outside[:, ::4, ::4]
    total, count = 0, 0
    for b in range(2):
        target = naive_filter(p[b].detach(), colours[b], SIGMA, inside[b])
        target = naive_filter(target, features[b] / features[b].norm(dim=0, keepdim=True), 1.0, inside[b])
        for y in range(4):
            for x in range(4):
                if unlabelled[b, 4 * y, 4 * x] and inside[b, y, x]:
                    total = total + (p[b, :, y, x] - target[:, y, x]).abs().sum()
                    count += 1
    got = tree_energy(logits, images, features, unlabelled, outside)
    torch.testing.assert_close(got, total / count)
    torch.testing.assert_close(gradients(got, logits), gradients(total / count, logits))
    for nothing in ((torch.zeros_like(unlabelled), outside), (unlabelled, torch.ones_like(outside))):
        energy = tree_energy(logits, images, features, *nothing)
        assert energy.item() == 0 and gradients(energy, logits)[0].eq(0).all()


@pytest.mark.parametrize("network", ["baseline", "random_walk"])
def test_the_method_has_the_term_on_both_networks(network):
    method = build_method(CC4SConfig(network=network, tree_energy=0.4), ModelConfig("resnet18", "none"), 3).train()
    label = torch.full((2, 33, 33), 255)
    label[:, 4:8, 4:8] = 1
    batch = {"image": torch.randn(2, 3, 33, 33), "label": label, "outside": torch.zeros(2, 33, 33, dtype=torch.bool)}
    losses = method(batch)
    assert list(losses) == ["cross_entropy", "tree_energy"] and 0 < losses["tree_energy"] < 0.8
    sum(losses.values()).backward()
    assert next(method.network.backbone.parameters()).grad.any()
