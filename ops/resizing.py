"""Bilinear resizing of maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resize(maps: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Resizes maps (B, C, h, w) bilinearly to `size` (H, W)."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample(maps: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """`resize` in at least float32, the type of logits."""
    return resize(maps.to(torch.promote_types(maps.dtype, torch.float32)), size, align_corners)


def resizing_matrix(side: int, wanted: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """Returns the matrix of linear resizing, (side, wanted): the weight of each of `side` positions in each wanted position.

    Bilinear resizing is a product with one matrix for rows and one for columns. So is its gradient. On a CPU, the products take
    a quarter of the time of F.interpolate's gradient, which scatters. On a GPU, F.interpolate's gradient adds in random order.
    """
    return F.interpolate(
        torch.eye(side, dtype=like.dtype, device=like.device)[None], wanted, mode="linear", align_corners=align_corners
    )[0]
