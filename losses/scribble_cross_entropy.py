"""The loss of BLPSeg's scribble head: which pixels do people label, and as which class?"""

import torch
import torch.nn.functional as F

from losses.partial_cross_entropy import IGNORE_INDEX


def scribble_cross_entropy(
    scribble_logits: torch.Tensor, label: torch.Tensor, outside: torch.Tensor, unlabelled_weight: float
) -> torch.Tensor:
    """Weighted cross-entropy over C classes and "unlabelled" (BLPSeg). Most pixels are unlabelled, so they have a small weight.

    scribble_logits: (B, C + 1, H, W), "unlabelled" last. label: (B, H, W) int64 in [0, C), or 255 where unlabelled.
    outside: (B, H, W) bool, True outside the image; these pixels do not count. unlabelled_weight: >= 0; a labelled pixel has 1.
    Returns the weighted mean, a scalar in nats; 0 with zero gradient if no pixel counts.
    """
    last = scribble_logits.shape[1] - 1
    target = torch.where(label == IGNORE_INDEX, last, label)
    entropy = F.cross_entropy(scribble_logits, target, reduction="none")
    weights = scribble_weights(label, outside, unlabelled_weight).to(entropy.dtype)
    return (weights * entropy).sum() / weights.sum().clamp(min=torch.finfo(entropy.dtype).tiny)


def scribble_weights(label: torch.Tensor, outside: torch.Tensor, unlabelled_weight: float) -> torch.Tensor:
    """The weight of each pixel in `scribble_cross_entropy`: (B, H, W) float32."""
    return torch.where(label == IGNORE_INDEX, unlabelled_weight, 1.0).masked_fill(outside, 0.0)
