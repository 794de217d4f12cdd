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


def at_positions(maps: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Picks the pixels (..., h, w) of maps (..., H, W) that are nearest to the positions of a grid (h, w) with
    align_corners=True; for ids and masks."""
    rows, columns = (
        torch.linspace(0, side - 1, wanted, device=maps.device).round().long()
        for side, wanted in zip(maps.shape[-2:], grid, strict=True)
    )
    return maps[..., rows[:, None], columns]


def resizing_matrix(side: int, wanted: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """Returns the matrix of linear resizing, (side, wanted): the weight of each of `side` positions in each wanted position.

    Bilinear resizing is a product with one matrix for rows and one for columns. So is its gradient. On a CPU, the products take
    a quarter of the time of F.interpolate's gradient, which scatters. On a GPU, F.interpolate's gradient adds in random order.
    """
    return F.interpolate(
        torch.eye(side, dtype=like.dtype, device=like.device)[None], wanted, mode="linear", align_corners=align_corners
    )[0]
