"""Seeds of a classifier of tags: class activation maps, packed by the tags of each image, grown and refined."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ops.pamr import pamr
from ops.resizing import resize, upsample
from ops.self_correlation import class_maps, self_correlation


class Seeds(NamedTuple):
    """The steps from activations to labels."""

    cam: torch.Tensor
    """(B, C - 1, h, w): class activation maps in [0, 1]"""
    grown: torch.Tensor
    """(B, C - 1, h, w): after SCG"""
    refined: torch.Tensor
    """(B, k, H, W): of the tagged classes, after PAMR"""
    label: torch.Tensor
    """(B, H, W) int64: certain labels"""


def cells_inside(outside: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Whether the centre of each cell of a coarse map is in the image: outside (B, H, W) bool -> (B, 1, h, w) bool."""
    return ~F.interpolate(outside[:, None].float(), grid, mode="nearest-exact").bool()


def activation_maps(activations: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Class activation maps (CAM): the positive activations (B, K, h, w) over their largest in the image, in [0, 1]; 0 where
    the centre of a cell is outside the image. outside: (B, H, W) bool. Returns (B, K, h, w) float32."""
    return over_largest(activations.float().relu() * cells_inside(outside, activations.shape[-2:]))


def over_largest(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, K, h, w), none negative, over the largest value of each: in [0, 1]."""
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + 1e-5)


def tag_logits(activations: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """The mean activations (B, K, h, w) of the cells inside the image: (B, K), at least float32. outside: (B, H, W) bool."""
    inside = cells_inside(outside, activations.shape[-2:])
    activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return (activations * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)


def grown_maps(
    cam: torch.Tensor, features: Sequence[torch.Tensor], thresholds: tuple[float, float], outside: torch.Tensor
) -> torch.Tensor:
    """The maps (B, K, h, w) grown along the self-correlation (SCG) of the features (B, D, h', w'), which are resized to their
    grid. thresholds: of the seeds, `ops.self_correlation.class_maps`. outside: (B, H, W) bool; cells with their centre outside
    the image take no part. Returns (B, K, h, w) in [0, 1], without gradient."""
    grid = cam.shape[-2:]
    inside = cells_inside(outside, grid).flatten(1)
    correlations = [self_correlation(resize(one.float(), grid, align_corners=False), inside=inside) for one in features]
    return class_maps(correlations, cam, *thresholds, inside=inside)


def tagged(maps: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps (B, C - 1, h, w) of the tagged classes alone: (B, k, h, w) and their class ids (B, k), where k is the largest
    number of tags of an image, at least 1. Spare maps are 0. tags: (B, C - 1), 1 for each class of the image."""
    count = max(1, int(tags.sum(dim=1).max()))
    present, order = tags.sort(dim=1, descending=True, stable=True)
    chosen = order[:, :count]
    maps = maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))
    return maps * present[:, :count, None, None], chosen + 1


def refined_maps(
    images: torch.Tensor, maps: torch.Tensor, tags: torch.Tensor, iterations: int, dilations: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of the tagged classes at the size of the images (B, 3, H, W), after steps of `pamr`: (B, k, H, W) and class ids
    (B, k), as from `tagged`. Without gradient."""
    packed, ids = tagged(maps, tags)
    packed = upsample(packed.detach(), images.shape[-2:], align_corners=False)
    return pamr(images, packed, iterations, dilations) if iterations else packed, ids
