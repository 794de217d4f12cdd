"""The colour constraint of CC4S: adjacent superpixels of similar colour should have similar predictions."""

import torch


def colour_constraint(
    logits: torch.Tensor, superpixel: torch.Tensor, edges: torch.Tensor, edge_weights: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(2 / ||W||) tr(Y^T L Y) = sum_ab w_ab ||Y_a - Y_b||^2 / sum_ab w_ab over the edges ab (CC4S, colour constraint).

    Y_a is the mean of the probabilities over superpixel a. L = D - W is the graph Laplacian. ||W|| is the sum of the entries of
    the symmetric W. The graph of a batch is the disjoint union of the graphs of its images. A superpixel that the crop cuts
    averages its remaining pixels. A superpixel without remaining pixels drops out together with its edges.

    logits: (B, C, H, W) raw scores. superpixel: (B, H, W) integer ids below `count`, distinct across the batch, -1 = none.
    edges: (M, 2) int64 pairs of superpixel ids, each pair once. edge_weights: (M,) float >= 0.
    Returns a scalar in [0, 2] and the sum of w_ab over the remaining edges. If the sum is 0, the scalar and its gradient are 0.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1).movedim(1, -1).reshape(-1, classes)
    place = superpixel.reshape(-1).long() + 1  # id -1 becomes row 0
    total = probabilities.new_zeros(1 + count, classes).index_add(0, place, probabilities)
    # A sum of ones, not `bincount`: on a GPU, `bincount` makes the step wait until the largest id is known.
    area = place.new_zeros(1 + count).index_add_(0, place, torch.ones_like(place))
    mean = total / area.clamp(min=1).unsqueeze(1)

    first, second = (edges + 1).unbind(dim=1)
    weights = edge_weights * ((area[first] > 0) & (area[second] > 0))
    difference = (mean[first] - mean[second]).square().sum(dim=1)
    weight_sum = weights.sum()
    return (weights * difference).sum() / torch.where(weight_sum > 0, weight_sum, 1), weight_sum
