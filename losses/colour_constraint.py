"""Predictions of adjacent superpixels of like colour should agree."""

import torch


def colour_constraint(
    logits: torch.Tensor, superpixel: torch.Tensor, edges: torch.Tensor, edge_weights: torch.Tensor, count: int
) -> torch.Tensor:
    """(2 / ||W||) tr(Y^T L Y) = sum_ab w_ab ||Y_a - Y_b||^2 / sum_ab w_ab over the edges ab (CC4S, colour constraint).

    Y_a is the mean of the probabilities over superpixel a, L = D - W the graph Laplacian and ||W|| the sum of the
    entries of the symmetric W. The batch's graph is the disjoint union of its images' graphs. A superpixel cut off by
    the crop averages what remains of it; one that is gone drops out with its edges.

    logits: (B, C, H, W) raw scores. superpixel: (B, H, W) integer ids under `count`, distinct across the batch, -1 = none.
    edges: (M, 2) int64 pairs of those ids, each pair once. edge_weights: (M,) float >= 0.
    Returns a scalar in [0, 2]; 0, with zero gradient, where no edge is left.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1).movedim(1, -1).reshape(-1, classes)
    area = superpixel_areas(superpixel, count)
    total = probabilities.new_zeros(len(area), classes).index_add(0, superpixel.reshape(-1).long() + 1, probabilities)
    mean = total / area.clamp(min=1).unsqueeze(1)

    weights = present_edges(area, edges, edge_weights)
    difference = (mean[edges[:, 0] + 1] - mean[edges[:, 1] + 1]).square().sum(dim=1)
    weight_sum = weights.sum()
    return (weights * difference).sum() / torch.where(weight_sum > 0, weight_sum, 1)


def superpixel_areas(superpixel: torch.Tensor, count: int) -> torch.Tensor:
    """Pixels of each superpixel, (1 + count,) int64: that of id a stands at a + 1, the pixels of none at 0.

    A sum of ones rather than `bincount`, which makes a GPU's step wait to learn the largest id.
    """
    ids = superpixel.reshape(-1).long() + 1
    return ids.new_zeros(1 + count).index_add_(0, ids, torch.ones_like(ids))


def present_edges(area: torch.Tensor, edges: torch.Tensor, edge_weights: torch.Tensor) -> torch.Tensor:
    """The edges' weights (M,), 0 for those that lack a superpixel. area: as `superpixel_areas` gives it."""
    return edge_weights * ((area[edges[:, 0] + 1] > 0) & (area[edges[:, 1] + 1] > 0))
