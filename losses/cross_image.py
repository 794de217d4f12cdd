"""Consistency of two images that share a class: the features of one image find the class in the other (CISC-R)."""

import torch
import torch.nn.functional as F

from losses.partial_cross_entropy import IGNORE_INDEX
from ops.resizing import resizing_matrix


def masked_mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of an image's features over a mask at the size of the image (CISC-R, masked average pooling).

    features: (B, D, h, w). mask: (B, H, W), 0 or 1. Returns (B, D), at least float32: the features, resized to (H, W)
    bilinearly (align_corners=False), summed where the mask is 1, over the mask's area + 5e-4. The features are not resized: the
    adjoint of the resizing brings the mask to their size, which gives the same sum.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        mask = mask.to(features.dtype)
        rows, columns = (
            resizing_matrix(*sides, False, features) for sides in zip(features.shape[-2:], mask.shape[-2:], strict=True)
        )
        weights = rows @ mask @ columns.mT
        return torch.einsum("bdhw,bhw->bd", features, weights) / (mask.sum(dim=(1, 2)) + 5e-4)[:, None]


def cosine_map(features: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Cosine of each position's features and one vector an image (CISC-R, similarity map before its resizing).

    features: (B, D, h, w). means: (B, D). Returns (B, 1, h, w), at least float32: in [-1, 1] up to rounding, not negative for
    features that are not negative, 0 where a vector is 0. The similarity S of the paper is this map, resized to the size of the
    image bilinearly with align_corners=False.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        means = F.normalize(means.to(features.dtype), dim=1, eps=1e-8)
        lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp(min=1e-8)
        # Unlike F.cosine_similarity, a product with the vector holds no further map of D channels.
        return torch.einsum("bdhw,bd->bhw", features, means)[:, None] / lengths


def map_consistency(similar: torch.Tensor, binary: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of a similarity map over the labelled pixels (CISC-R, cross-image consistency).

    similar: (B, H, W) float32, s; rounding may lift s over 1. binary: (B, H, W) bool, the class's map m in the image that
    predicts s. label: (B, H, W) int64, 255 = unlabelled. Returns a scalar in nats, the mean of
    -m log max(s, 1e-6) - (1 - m) log max(1 - s, 1e-6); 0 where s and m are 0, and 0 with zero gradient if no pixel is labelled.
    """
    valid = label != IGNORE_INDEX
    right = torch.where(binary, similar, 1 - similar)
    return -(right.clamp(1e-6, 1).log() * valid).sum() / valid.sum().clamp(min=1)
