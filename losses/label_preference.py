"""The balanced label preference (BLP) loss of BLPSeg."""

import torch

from losses.partial_cross_entropy import IGNORE_INDEX


def label_preference(logits: torch.Tensor, scribble_logits: torch.Tensor, label: torch.Tensor, gamma: float) -> torch.Tensor:
    """Cross-entropy of labelled pixels, each weighted (1 - p_scribble p_seg)^gamma: what people like to label and the network
    knows counts less. The weighted mean of each image, averaged over images (BLPSeg, BLP loss).

    logits: (B, C, H, W). scribble_logits: (B, C + 1, H, W), the last class "unlabelled". label: (B, H, W) int64 in [0, C), or
    255 where unlabelled. p are the softmaxes' values of the label's class; no gradient goes through the weights.
    Returns a scalar in nats; an image without labels counts as 0, with zero gradient. gamma 0 is the cross-entropy, its
    mean taken of each image and then of all.
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
    """log softmax at each pixel's class: logits (B, C, H, W), index (B, 1, H, W) -> (B, H, W)."""
    return (logits.gather(1, index) - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)
