"""What the scribble head of BLPSeg learns: which pixels people label, and as what."""

import torch
import torch.nn.functional as F

from losses.partial_cross_entropy import IGNORE_INDEX


def scribble_cross_entropy(
    scribble_logits: torch.Tensor, label: torch.Tensor, outside: torch.Tensor, unlabelled_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over the classes and "unlabelled", whose pixels, being so many, count `unlabelled_weight` each (BLPSeg).

    scribble_logits: (B, C + 1, H, W), "unlabelled" last. label: (B, H, W) int64 in [0, C), or 255 where unlabelled.
    outside: (B, H, W) bool, True where there is no image; not counted.
    Returns the weighted mean, a scalar in nats (0, with zero gradient, where nothing counts), and the sum of the weights.
    """
    last = scribble_logits.shape[1] - 1
    target = torch.where(label == IGNORE_INDEX, last, label).masked_fill(outside, IGNORE_INDEX)
    class_weights = scribble_logits.new_ones(last + 1)
    class_weights[last] = unlabelled_weight
    total = F.cross_entropy(scribble_logits, target, class_weights, ignore_index=IGNORE_INDEX, reduction="sum")
    counted = target != IGNORE_INDEX
    weight = (class_weights[target.where(counted, 0)] * counted).sum()
    return total / weight.clamp(min=torch.finfo(total.dtype).tiny), weight
