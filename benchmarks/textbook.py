"""The formulas of CC4S, BLPSeg and RecurSeed as the papers write them, with full matrices, to compare the fast paths with.

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


def grown_maps(features: list[torch.Tensor], cam: torch.Tensor) -> torch.Tensor:
    """SCG as published: for each image and class, the seeds' columns of the self-correlations are scaled and summed.
    features: (B, D, h, w) each. cam: (B, K, h, w). Returns (B, K, h, w)."""
    correlation = torch.zeros(())
    for one in features:
        vectors = F.normalize(one.flatten(2), dim=1)
        similar = (vectors.mT @ vectors).relu()
        similar[similar < 0.5] = 0
        steps = similar.clone()
        steps.diagonal(dim1=1, dim2=2).zero_()
        steps = steps / (steps.sum(dim=1, keepdim=True) + 1e-10)
        walked = steps @ steps
        walked = walked / (walked.sum(dim=1, keepdim=True) + 1e-10)
        walked[walked < 0.1 / walked.shape[1]] = 0
        both = torch.maximum(similar / (similar.sum(dim=1, keepdim=True) + 1e-10), walked)
        correlation = correlation + both / (both.sum(dim=1, keepdim=True) + 1e-10)
    maps = torch.zeros_like(cam)
    for image, of_class in [(b, k) for b in range(len(cam)) for k in range(cam.shape[1])]:
        activation, grown = cam[image, of_class].flatten(), []
        for seeds in (activation >= 0.3, activation <= 0.05):
            columns = _scaled(correlation[image][:, seeds], 0).sum(dim=1) if seeds.any() else torch.zeros_like(activation)
            grown.append(_scaled(columns, 0))
        maps[image, of_class] = _scaled((grown[0] - grown[1]).relu(), 0).view_as(maps[image, of_class])
    return maps


def pamr(images: torch.Tensor, masks: torch.Tensor, iterations: int, dilations: list[int]) -> torch.Tensor:
    """PAMR as published: every class has its own copies of the neighbours. masks: (B, K, H, W)."""

    def windows(maps: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C, dilations, 9, H, W)
        count, height, width = maps.shape[1], *maps.shape[-2:]
        return torch.stack([
            F.unfold(F.pad(maps, (d, d, d, d), mode="replicate"), 3, dilation=d).view(-1, count, 9, height, width)
            for d in dilations
        ], dim=2)  # fmt: skip

    def neighbours(maps: torch.Tensor) -> torch.Tensor:
        found = windows(maps)
        return torch.cat([found[:, :, :, :4], found[:, :, :, 5:]], dim=3).flatten(2, 3)

    deviation = windows(images).flatten(2, 3).std(dim=2, keepdim=True)
    energies = -(neighbours(images) - images[:, :, None]).abs() / (1e-8 + 0.1 * deviation)
    weights = energies.mean(dim=1, keepdim=True).softmax(dim=2)
    for _ in range(iterations):
        masks = (neighbours(masks) * weights).sum(dim=2)
    return masks


def _scaled(values: torch.Tensor, dim: int) -> torch.Tensor:
    low, high = values.amin(dim=dim, keepdim=True), values.amax(dim=dim, keepdim=True)
    return (values - low) / (high - low + 1e-10)
