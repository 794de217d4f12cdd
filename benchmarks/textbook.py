"""The formulas of CC4S and BLPSeg as the papers write them, with full matrices, to compare the fast paths with.

Plain float32, channels first. The transition matrix P stays in memory for the backward pass. Two products with an N x N
permutation matrix flip the energies of the view. The Laplacian is dense.
"""

import torch
import torch.nn.functional as F

from datasets.batch import Batch
from methods.cc4s import CC4SConfig
from models.cc4s import BaselineNet, RandomWalkNet


def walk(network: RandomWalkNet, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """features x (B, D, h, w) -> gamma P V + x of the same shape, and the energies E (B, N, N)."""
    module = network.walk
    query, key, value = (conv(features).flatten(2) for conv in (module.query_conv, module.key_conv, module.value_conv))
    energy = query.mT @ key
    transition = energy.softmax(dim=-1)
    walked = (value @ transition.mT).view_as(features)
    return module.gamma * walked + features, energy


def mirror_matrix(height: int, width: int, device: torch.device) -> torch.Tensor:
    """The (N, N) int64 permutation matrix that mirrors the positions of a height x width map left-right."""
    order = torch.arange(height * width, device=device).view(height, width).flip(1).flatten()
    return F.one_hot(order)


def eigenspace_consistency(energy: torch.Tensor, view_energy: torch.Tensor, trace_weight: float = 0.01) -> torch.Tensor:
    """KL(S(E') || S(E)) + trace_weight |tr S(E) - tr S(E')| of energies (B, N, N). As in the released code, the softmax is over
    the queries, and the mean is over all entries."""
    transition, view_transition = energy.softmax(dim=1), view_energy.softmax(dim=1)
    divergence = F.kl_div(energy.log_softmax(dim=1), view_transition, reduction="none").mean()
    traces = [matrix.diagonal(dim1=1, dim2=2).sum(dim=1) for matrix in (transition, view_transition)]
    return divergence + trace_weight * (traces[0] - traces[1]).abs().mean()


def soft_entropy(logits: torch.Tensor, boundary: torch.Tensor) -> torch.Tensor:
    """Mean of -sum_c p_c log p_c over the pixels that are not on a boundary."""
    probabilities = logits.softmax(dim=1)
    entropy = -(probabilities * logits.log_softmax(dim=1)).sum(dim=1)
    return (entropy * ~boundary).sum() / (~boundary).sum()


def colour_constraint(
    logits: torch.Tensor, superpixel: torch.Tensor, edges: torch.Tensor, edge_weights: torch.Tensor
) -> torch.Tensor:
    """(2 / ||W||) tr(Y^T L Y) with a dense Laplacian of each image's superpixels. ||W|| is the sum over all images."""
    traces, norms = [], []
    for probabilities, ids in zip(logits.softmax(dim=1).flatten(2).mT, superpixel.flatten(1).long(), strict=True):
        inside = ids >= 0
        first, last = ids[inside].min(), ids[inside].max()
        own = ((edges >= first) & (edges <= last)).all(dim=1)
        ids, (left, right), count = ids[inside] - first, (edges[own] - first).T, int(last - first) + 1
        area = probabilities.new_zeros(count).index_add(0, ids, torch.ones_like(probabilities[inside, 0]))
        total = probabilities.new_zeros(count, probabilities.shape[1]).index_add(0, ids, probabilities[inside])
        mean = total / area.clamp(min=1)[:, None]
        weights = probabilities.new_zeros(count, count)
        weights[left, right] = edge_weights[own] * (area[left] > 0) * (area[right] > 0)
        weights = weights + weights.T
        laplacian = weights.sum(dim=1).diag() - weights
        traces.append(torch.trace(mean.T @ laplacian @ mean))
        norms.append(weights.sum())
    return 2 * sum(traces) / sum(norms)


def losses(network: BaselineNet | RandomWalkNet, config: CC4SConfig, batch: Batch) -> dict[str, torch.Tensor]:
    """Named, weighted losses of a batch, like those of `methods.cc4s.CC4S.forward`."""
    images = batch["image"]
    found: dict[str, torch.Tensor] = {}
    if isinstance(network, BaselineNet):
        logits = network(images)
    else:
        features = network.features(images)
        walked, energy = walk(network, features)
        logits = F.interpolate(network.head(walked), images.shape[-2:], mode="bilinear", align_corners=True)
    if config.consistency and isinstance(network, RandomWalkNet):
        with torch.no_grad():
            view = network.features(images.flip(-1))
            query, key = (conv(view).flatten(2) for conv in (network.walk.query_conv, network.walk.key_conv))
            mirror = mirror_matrix(view.shape[-2], view.shape[-1], view.device).to(view.dtype)
            view_energy = mirror @ (query.mT @ key) @ mirror
        loss = eigenspace_consistency(energy, view_energy, config.trace)
        found["consistency"] = config.consistency * energy.shape[1] / 3481 * loss
    found["cross_entropy"] = F.cross_entropy(logits, batch["label"], ignore_index=255)
    if config.soft_entropy:
        found["soft_entropy"] = config.soft_entropy * soft_entropy(logits, batch["boundary"])
    if config.colour:
        found["colour"] = config.colour * colour_constraint(logits, batch["superpixel"], batch["edges"], batch["edge_weights"])
    return found


def local_aggregation(logits: torch.Tensor, features: torch.Tensor, sigma: float) -> torch.Tensor:
    """BLPSeg's LAM: softmax of f^T f over the source positions, times the Gaussian, divided by the sum over these positions.

    The released code adds 1e-7 to this sum; this function does not. logits: (B, C, h, w); features: (B, D, h, w).
    """
    height, width = features.shape[-2:]
    rows, columns = torch.arange(height, device=features.device), torch.arange(width, device=features.device)
    place = torch.cartesian_prod(rows, columns).to(features.dtype)
    flat = features.flatten(2)
    near = torch.exp(-(place[:, None] - place).square().sum(dim=-1) / (2 * sigma**2))
    similarity = (flat.mT @ flat).softmax(dim=1) * near
    similarity = similarity / similarity.sum(dim=1, keepdim=True)
    return (logits.flatten(2) @ similarity).view_as(logits)
