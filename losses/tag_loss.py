"""Losses of a classifier of tags and of its activation maps (RecurSeed)."""

import torch
import torch.nn.functional as F

from ops.seeds import tag_logits


def tag_loss(activations: torch.Tensor, tags: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of the tag logits, which are the mean activations of the cells inside the image (RecurSeed).

    activations: (B, K, h, w) raw scores. tags: (B, K), 1 for each class that the image shows. outside: (B, H, W) bool. Returns
    a scalar in nats, at least float32.
    """
    return F.binary_cross_entropy_with_logits(tag_logits(activations, outside), tags)


def reconstruction(cam: torch.Tensor, refined: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """L_rec of RecurSeed: mean |CAM - refined map|, at the size of the CAM, over the tagged classes.

    cam: (B, k, h, w) in [0, 1], of the tagged classes, as from `ops.seeds.tagged`. refined: (B, k, H, W), constant. tags:
    (B, K). Returns a scalar, 0 without any tag.
    """
    height, width = cam.shape[-2:]
    target = F.adaptive_avg_pool2d(refined, (height, width))
    return (cam - target).abs().mean(dim=(2, 3)).sum() / tags.sum().clamp(min=1)
