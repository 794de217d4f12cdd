"""Self-correlation of features: which positions of a map belong together, and class maps grown from seeds along it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

EPSILON = 1e-10


def self_correlation(features: torch.Tensor, first: float = 0.5, second: float = 0.1) -> torch.Tensor:
    """Hybrid self-correlation of a feature map (SCG; Pan et al., CVPR 2021; used by RecurSeed).

    features: (B, D, h, w). Returns (B, N, N), N = h w, at least float32, without gradient: column j weighs all positions by
    how much they belong to position j, and sums to 1. It is the larger of the first order, the cosine without values under
    `first`, and of the second order, two steps along the first order, without values under `second` / N; each with columns of
    sum 1. Images are computed one by one, so that one further N x N matrix exists at a time.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        vectors = F.normalize(features.detach().to(dtype).flatten(2), dim=1, eps=EPSILON)
        return torch.stack([_hybrid(image, first, second) for image in vectors])


def _hybrid(vectors: torch.Tensor, first: float, second: float) -> torch.Tensor:
    """vectors: (D, N) of length 1 -> (N, N)."""
    similar = vectors.mT @ vectors
    similar = similar.masked_fill_(similar < first, 0)
    steps = _columns_sum_to_1(similar.clone().fill_diagonal_(0))
    walked = _columns_sum_to_1(steps @ steps)
    walked.masked_fill_(walked < second / len(walked), 0)
    return _columns_sum_to_1(torch.maximum(_columns_sum_to_1(similar), walked, out=walked))


def class_maps(
    correlations: Sequence[torch.Tensor], cam: torch.Tensor, foreground: float = 0.3, background: float = 0.05
) -> torch.Tensor:
    """Grows the seeds of class activation maps along the self-correlations (SCG; the self-correlation map of RecurSeed).

    correlations: of `self_correlation`, (B, N, N) each, on the grid of `cam`; their sum counts. cam: (B, K, h, w) in [0, 1].
    Seeds of a class are the positions with an activation of at least `foreground`, and of the background of at most
    `background`. Returns (B, K, h, w) in [0, 1], at least float32, without gradient: the map grown from the foreground's seeds
    minus the map from the background's, where positive. A class without seeds of the foreground gets 0.
    """
    with torch.no_grad(), torch.autocast(cam.device.type, enabled=False):
        columns = _scaled(torch.stack(list(correlations)).sum(dim=0), dim=1)
        flat = cam.detach().to(columns.dtype).flatten(2).mT
        seeds = torch.cat([flat >= foreground, flat <= background], dim=2).to(columns.dtype)
        grown = _scaled(columns @ seeds, dim=1)
        of_foreground, of_background = grown.chunk(2, dim=2)
        return _scaled((of_foreground - of_background).relu_(), dim=1).mT.reshape(cam.shape)


def _columns_sum_to_1(matrix: torch.Tensor) -> torch.Tensor:
    return matrix / (matrix.sum(dim=-2, keepdim=True) + EPSILON)


def _scaled(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Values scaled to [0, 1] along `dim`; 0 where they are constant."""
    low, high = values.amin(dim=dim, keepdim=True), values.amax(dim=dim, keepdim=True)
    return (values - low) / (high - low + EPSILON)
