"""Cross-entropy at labelled pixels."""

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255  # of a pixel without a label


def partial_cross_entropy(logits: torch.Tensor, label: torch.Tensor, ignore_index: int = IGNORE_INDEX) -> torch.Tensor:
    """Mean cross-entropy over the labelled pixels (CC4S, partial cross-entropy).

    logits: (B, C, H, W) raw scores. label: (B, H, W) int64 in [0, C), or `ignore_index` where unlabelled.
    Returns a scalar in nats; 0, with zero gradient, where no pixel is labelled.
    """
    total = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="sum")
    return total / (label != ignore_index).sum().clamp(min=1)
