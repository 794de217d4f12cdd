"""Bilinear resizing of maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resize(maps: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Maps (B, C, h, w) bilinearly resized to `size`."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)


def upsample(maps: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """`resize` in float32 at least, as logits are."""
    return resize(maps.to(torch.promote_types(maps.dtype, torch.float32)), size, align_corners)


def resizing_matrix(side: int, wanted: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """(side, wanted): what each of `side` positions adds to each of `wanted` in linear resizing.

    Bilinear resizing is a product with such a matrix for rows and one for columns, and so is its gradient: a quarter of the
    time that F.interpolate's takes on a CPU, which scatters (on a GPU by atomic additions, in whichever order they come).
    """
    return F.interpolate(
        torch.eye(side, dtype=like.dtype, device=like.device)[None], wanted, mode="linear", align_corners=align_corners
    )[0]
