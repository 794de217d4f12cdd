"""Entropy of the predictions, softened at superpixel boundaries."""

import torch
import torch.nn.functional as F


def soft_entropy(logits: torch.Tensor, boundary: torch.Tensor | None = None) -> torch.Tensor:
    """Mean entropy of the predictions away from superpixel boundaries (CC4S, soft entropy loss).

    logits: (B, C, H, W) raw scores. boundary: (B, H, W) bool, True where the entropy is not counted; None counts
    every pixel. Returns a scalar in nats, in [0, log C]; 0, with zero gradient, where every pixel is boundary.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    if boundary is None:
        return entropy.mean()
    counted = ~boundary
    return (entropy * counted).sum() / counted.sum().clamp(min=1)
