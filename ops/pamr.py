"""Pixel-adaptive mask refinement: masks follow the edges of the image (PAMR; Araslanov and Roth, CVPR 2020)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

OFFSETS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


def pamr(
    images: torch.Tensor, masks: torch.Tensor, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)
) -> torch.Tensor:
    """Replaces each pixel of the masks, `iterations` times, by a mean over its 8 neighbours at every dilation. Neighbours of a
    similar colour weigh more.

    images: (B, 3, H, W), any gain and offset. masks: (B, K, H, W). Returns (B, K, H, W), at least float32, without gradient.
    The weights of a pixel are the softmax over its neighbours of -|difference| / (1e-8 + 0.1 s), a mean over the channels; s is
    the standard deviation of the neighbours and of the pixel itself, which counts once for every dilation. Beyond the border,
    the border's pixels are repeated. No tensor has a further axis of neighbours beside the classes.
    """
    dtype = torch.promote_types(masks.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        weights = _affinities(images.detach().to(dtype).contiguous(), dilations)
        masks = masks.detach().to(dtype)
        for _ in range(iterations):
            refined = torch.zeros_like(masks)
            for weight, shifted in zip(weights, _neighbours(masks, dilations), strict=True):
                refined.addcmul_(weight, shifted)
            masks = refined
        return masks


def _affinities(images: torch.Tensor, dilations: Sequence[int]) -> list[torch.Tensor]:
    """(B, 3, H, W) -> the weight (B, 1, H, W) of each neighbour, in the order of `_neighbours`."""
    images = images - images.mean(dim=(2, 3), keepdim=True)  # sums of small numbers keep digits
    neighbours, count = _neighbours(images, dilations), 9 * len(dilations)
    total, squares = len(dilations) * images, len(dilations) * images**2
    for value in neighbours:
        total += value
        squares.addcmul_(value, value)
    deviation = ((squares - total**2 / count).clamp_(min=0) / (count - 1)).sqrt_()
    scale = -1 / images.shape[1] / (1e-8 + 0.1 * deviation)
    energies = images.new_empty(len(images), len(neighbours), *images.shape[-2:])
    for energy, value in zip(energies.unbind(dim=1), neighbours, strict=True):
        torch.sum((value - images).abs_().mul_(scale), dim=1, out=energy)
    return list(energies.softmax(dim=1).split(1, dim=1))


def _neighbours(maps: torch.Tensor, dilations: Sequence[int]) -> list[torch.Tensor]:
    """Views of the maps (B, K, H, W), shifted to each neighbour: 8 a dilation."""
    height, width = maps.shape[-2:]
    largest = max(dilations)
    padded = F.pad(maps, (largest, largest, largest, largest), mode="replicate")
    return [
        padded[..., largest + d * down : largest + d * down + height, largest + d * right : largest + d * right + width]
        for d in dilations
        for down, right in OFFSETS
    ]
