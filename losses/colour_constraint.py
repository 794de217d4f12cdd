"""Predictions of adjacent superpixels of like colour should agree."""

import torch


def colour_constraint(
    logits: torch.Tensor, superpixel: torch.Tensor, edges: torch.Tensor, edge_weights: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(2 / ||W||) tr(Y^T L Y) = sum_ab w_ab ||Y_a - Y_b||^2 / sum_ab w_ab over the edges ab (CC4S, colour constraint).

    Y_a is the mean of the probabilities over superpixel a, L = D - W the graph Laplacian and ||W|| the sum of the
    entries of the symmetric W. The batch's graph is the disjoint union of its images' graphs. A superpixel cut off by
    the crop averages what remains of it; one that is gone drops out with its edges.

    logits: (B, C, H, W) raw scores. superpixel: (B, H, W) integer ids under `count`, distinct across the batch, -1 = none.
    edges: (M, 2) int64 pairs of those ids, each pair once. edge_weights: (M,) float >= 0.
    Returns a scalar in [0, 2], and the sum of w_ab over the edges that are left; without any, 0, with zero gradient, and 0.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1).movedim(1, -1).reshape(-1, classes)
    place = superpixel.reshape(-1).long() + 1  # pixels of no superpixel at 0
    total = probabilities.new_zeros(1 + count, classes).index_add(0, place, probabilities)
    # A sum of ones rather than `bincount`, which makes a GPU's step wait to learn the largest id.
    area = place.new_zeros(1 + count).index_add_(0, place, torch.ones_like(place))
    mean = total / area.clamp(min=1).unsqueeze(1)

    first, second = (edges + 1).unbind(dim=1)
    weights = edge_weights * ((area[first] > 0) & (area[second] > 0))
    difference = (mean[first] - mean[second]).square().sum(dim=1)
    weight_sum = weights.sum()
    return (weights * difference).sum() / torch.where(weight_sum > 0, weight_sum, 1), weight_sum
