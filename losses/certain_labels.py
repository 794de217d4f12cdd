"""Labels where a class is certain, background where no class is likely, and none elsewhere (RecurSeed's certain filter)."""

import torch

from losses.partial_cross_entropy import IGNORE_INDEX


def certain_labels(
    maps: torch.Tensor, ids: torch.Tensor, outside: torch.Tensor, certain: float, uncertain: float
) -> torch.Tensor:
    """maps: (B, k, H, W) in [0, 1], of the possible classes. ids: (B, k) int64, their class ids. outside: (B, H, W) bool.

    Returns (B, H, W) int64: the class of the largest value if the value is at least `certain`; 0 (background) if it is at most
    `uncertain`; else, and outside the image, 255. Without a possible class (maps of 0), all is background.
    """
    value, slot = maps.max(dim=1)
    label = ids[:, :, None, None].expand_as(maps).gather(1, slot[:, None])[:, 0]
    label = torch.where(value >= certain, label, torch.where(value <= uncertain, 0, IGNORE_INDEX))
    return label.masked_fill(outside, IGNORE_INDEX)


def foreground(label: torch.Tensor) -> torch.Tensor:
    """Where a label (B, H, W) int64 is a class other than 0, the background: bool."""
    return (label > 0) & (label != IGNORE_INDEX)


def visible_tags(label: torch.Tensor, shown: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The classes of a label (B, H, W) int64 at the foreground pixels of `shown` (B, H, W) bool, as tags `like` (B, C - 1)."""
    ids = torch.arange(1, 1 + like.shape[1], device=label.device)[:, None, None]
    return ((label * (shown & foreground(label)))[:, None] == ids).any(dim=(2, 3)).to(like.dtype)
