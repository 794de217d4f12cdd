"""Cross-entropy at labelled pixels."""

import torch
import torch.nn.functional as F

from ops.pixelwise import pixelwise_mean

IGNORE_INDEX = 255  # the label of an unlabelled pixel


def partial_cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labelled pixels (CC4S, partial cross-entropy).

    logits: (B, C, H, W) raw scores. label: (B, H, W) int64 in [0, C), or 255 where unlabelled.
    Returns a scalar in nats; 0 with zero gradient if no pixel is labelled.
    """
    # The sum is taken here, because the sum inside cross_entropy is not deterministic on a GPU.
    entropy = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none")
    return entropy.sum() / (label != IGNORE_INDEX).sum().clamp(min=1)


def coarse_cross_entropy(logits: torch.Tensor, label: torch.Tensor, align_corners: bool = True) -> torch.Tensor:
    """`partial_cross_entropy` of coarse logits (B, C, h, w), resized to the label (B, H, W) a few images at a time. Over
    several processes, the mean is over the labelled pixels of all."""

    def term(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return partial_cross_entropy(logits, label[some]), (label[some] != IGNORE_INDEX).sum()

    return pixelwise_mean(term, logits, label.shape[-2:], align_corners)
