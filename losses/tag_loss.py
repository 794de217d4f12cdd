"""Multi-label classification of an image from a map of activations."""

import torch
import torch.nn.functional as F


def tag_loss(activations: torch.Tensor, tags: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of the tag logits, which are the mean activations of the cells inside the image (RecurSeed).

    activations: (B, K, h, w) raw scores. tags: (B, K), 1 for each class that the image shows. outside: (B, H, W) bool. Returns
    a scalar in nats, at least float32.
    """
    inside = F.interpolate((~outside)[:, None].float(), activations.shape[-2:], mode="nearest-exact")
    logits = (activations.float() * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, tags)
