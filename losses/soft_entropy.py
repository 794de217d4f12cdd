"""Entropy of the predictions; pixels at superpixel boundaries do not count."""

import torch
import torch.nn.functional as F


def soft_entropy(logits: torch.Tensor, boundary: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the predictions away from superpixel boundaries (CC4S, soft entropy loss).

    logits: (B, C, H, W) raw scores. boundary: (B, H, W) bool, True at pixels that do not count.
    Returns a scalar in nats, in [0, log C]; 0 with zero gradient if every pixel is boundary.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    counted = ~boundary
    return (entropy * counted).sum() / counted.sum().clamp(min=1)
