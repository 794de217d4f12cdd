"""Self-correlation of features: which positions of a map belong together, and class maps grown from seeds along it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

EPSILON = 1e-10


def self_correlation(
    features: torch.Tensor, first: float = 0.5, second: float = 0.1, inside: torch.Tensor | None = None
) -> torch.Tensor:
    """Hybrid self-correlation of a feature map (SCG; Pan et al., CVPR 2021; used by RecurSeed).

    features: (B, D, h, w). Returns (B, N, N), N = h w, at least float32, without gradient: column j weighs all positions by
    how much they belong to position j, and sums to 1. It is the larger of the first order, the cosine without values under
    `first`, and of the second order, two steps along the first order, without values under `second` / N; each with columns of
    sum 1. Images are computed one by one, so that one further N x N matrix exists at a time. inside: (B, N) bool, the positions
    that belong to the image; the others have rows and columns of 0 and do not count in N. None: all positions.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        vectors = F.normalize(features.detach().to(dtype).flatten(2), dim=1, eps=EPSILON)
        if inside is None:
            inside = torch.ones_like(vectors[:, 0], dtype=torch.bool)
        vectors = vectors * inside[:, None]
        counts = inside.sum(dim=1).to(dtype)
        return torch.stack([_hybrid(image, first, second / count) for image, count in zip(vectors, counts, strict=True)])


def _hybrid(vectors: torch.Tensor, first: float, second: torch.Tensor) -> torch.Tensor:
    """vectors: (D, N) of length 1, or 0 -> (N, N). second: least value of the second order, a scalar."""
    similar = vectors.mT @ vectors
    similar = similar.masked_fill_(similar < first, 0)
    steps = _columns_sum_to_1(similar.clone().fill_diagonal_(0))
    walked = _columns_sum_to_1(steps @ steps)
    walked.masked_fill_(walked < second, 0)
    return _columns_sum_to_1(torch.maximum(_columns_sum_to_1(similar), walked, out=walked))


def class_maps(
    correlations: Sequence[torch.Tensor],
    cam: torch.Tensor,
    foreground: float = 0.3,
    background: float = 0.05,
    inside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Grows the seeds of class activation maps along the self-correlations (SCG; the self-correlation map of RecurSeed).

    correlations: of `self_correlation`, (B, N, N) each, on the grid of `cam`; their sum counts. cam: (B, K, h, w) in [0, 1].
    Seeds of a class are the positions with an activation of at least `foreground`, and of the background of at most
    `background`. inside: (B, N) bool, as in `self_correlation`; other positions are no seeds, are in no minimum or maximum, and
    get 0. Returns (B, K, h, w) in [0, 1], at least float32, without gradient: the map grown from the foreground's seeds
    minus the map from the background's, where positive. A class without seeds of the foreground gets 0.
    """
    with torch.no_grad(), torch.autocast(cam.device.type, enabled=False):
        flat = cam.detach().flatten(2).mT
        outside = torch.zeros_like(flat[..., :1], dtype=torch.bool) if inside is None else ~inside[..., None]
        columns = _scaled(torch.stack(list(correlations)).sum(dim=0), outside)
        seeds = torch.cat([flat >= foreground, flat <= background], dim=2).masked_fill_(outside, False)
        grown = _scaled(columns @ seeds.to(columns.dtype), outside)
        of_foreground, of_background = grown.chunk(2, dim=2)
        return _scaled((of_foreground - of_background).relu_(), outside).mT.reshape(cam.shape)


def _columns_sum_to_1(matrix: torch.Tensor) -> torch.Tensor:
    return matrix / (matrix.sum(dim=-2, keepdim=True) + EPSILON)


def _scaled(values: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Values (B, N, M), none negative, scaled to [0, 1] along N; 0 where they are constant, and in the rows `outside`,
    (B, N, 1) bool."""
    low = values.masked_fill(outside, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(outside, 0).amax(dim=1, keepdim=True)
    return ((values - low) / (high - low + EPSILON)).masked_fill_(outside, 0)
