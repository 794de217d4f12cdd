"""Cross-entropy with pseudo-labels that counts less where another image disagrees with the pseudo-label (CISC-R)."""

import torch
import torch.nn.functional as F

from losses.partial_cross_entropy import IGNORE_INDEX


def rectified_cross_entropy(logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean of the weighted cross-entropy over the labelled pixels (CISC-R, steps 4 and 6; the release divides by all pixels).

    logits: (B, C, H, W) raw scores. label: (B, H, W) int64 pseudo-labels in [0, C), or 255. weight: (B, H, W) float without
    gradient, 1 - |m - S| of `rectification`. Returns a scalar in nats; 0 with zero gradient if no pixel is labelled.
    """
    entropy = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none")
    return (weight * entropy).sum() / (label != IGNORE_INDEX).sum().clamp(min=1)


def rectification(binary: torch.Tensor, similar: torch.Tensor) -> torch.Tensor:
    """The weights 1 - |m - S|, small where the pseudo-label and the other image disagree.

    binary: (B, H, W) bool, m: where the pseudo-label is the shared class. similar: (B, H, W) float, S: the similarity with the
    shared class in the other image. Returns (B, H, W) float in [0, 1]; 1 where both are 0, as without a shared class.
    """
    return 1 - (binary.to(similar.dtype) - similar.clamp(0, 1)).abs()
