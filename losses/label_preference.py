"""The balanced label preference (BLP) loss of BLPSeg."""

import torch

from losses.partial_cross_entropy import IGNORE_INDEX


def label_preference(logits: torch.Tensor, scribble_logits: torch.Tensor, label: torch.Tensor, gamma: float) -> torch.Tensor:
    """Cross-entropy of labelled pixels with weights (1 - p_scribble p_seg)^gamma, averaged per image, then over images (BLPSeg,
    BLP loss). A pixel counts less if people like to label such pixels and the network already knows the class.

    logits: (B, C, H, W). scribble_logits: (B, C + 1, H, W), the last class "unlabelled". label: (B, H, W) int64 in [0, C), or
    255 where unlabelled. p_seg and p_scribble are the probabilities of the label's class. The weights have no gradient.
    gamma: >= 0; with 0 all weights are 1. Returns a scalar in nats. An image without labels counts as 0, with zero gradient.
    """
    labelled = label != IGNORE_INDEX
    index = torch.where(labelled, label, 0).unsqueeze(1)
    log_probability = _log_probability(logits, index)
    with torch.no_grad():
        both = log_probability + _log_probability(scribble_logits, index)
        weights = (1 - both.exp()) ** gamma * labelled
        totals = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)
    return -((weights * log_probability).sum(dim=(1, 2)) / totals).mean()


def _log_probability(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Log-softmax of each pixel's class `index`: logits (B, C, H, W), index (B, 1, H, W) -> (B, H, W)."""
    return (logits.gather(1, index) - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)
