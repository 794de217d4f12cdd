"""The balanced label preference (BLP) loss of BLPSeg."""

import torch

from losses.partial_cross_entropy import IGNORE_INDEX


def label_preference_weights(
    logits: torch.Tensor, scribble_logits: torch.Tensor, label: torch.Tensor, gamma: float
) -> torch.Tensor:
    """(1 - p_scribble p_seg)^gamma at labelled pixels, 0 at others: what people like to label and the network knows
    counts less.

    logits: (B, C, H, W). scribble_logits: (B, C + 1, H, W), the last class "unlabelled". label: (B, H, W) int64 in [0, C), or
    255 where unlabelled. p are the softmaxes' values of the label's class. Returns (B, H, W) in [0, 1], without gradient.
    """
    labelled = label != IGNORE_INDEX
    index = torch.where(labelled, label, 0).unsqueeze(1)
    with torch.no_grad():
        both = _log_probability(logits, index) + _log_probability(scribble_logits, index)
        return (1 - both.exp()) ** gamma * labelled


def label_preference(logits: torch.Tensor, scribble_logits: torch.Tensor, label: torch.Tensor, gamma: float) -> torch.Tensor:
    """Cross-entropy under `label_preference_weights`, their weighted mean in each image, averaged over images (BLPSeg,
    BLP loss).

    Arguments as there. Returns a scalar in nats; an image without labels counts as 0, with zero gradient. gamma 0 is the
    cross-entropy.
    """
    weights = label_preference_weights(logits, scribble_logits, label, gamma)
    index = torch.where(label != IGNORE_INDEX, label, 0).unsqueeze(1)
    sums = -(weights * _log_probability(logits, index)).sum(dim=(1, 2))
    totals = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)
    return (sums / totals).mean()


def _log_probability(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """log softmax at each pixel's class: logits (B, C, H, W), index (B, 1, H, W) -> (B, H, W)."""
    return (logits.gather(1, index) - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)
