"""Views of a batch. Each position of a view's feature map matches one position of the image's feature map."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from errors import UserError
from models.resnet import STRIDE

# Share of the feature map's rows that a crop keeps: the release keeps 385 of 465 pixel rows, 49 of 59 feature rows.
KEPT_ROWS = 49 / 59


@dataclass(frozen=True)
class View:
    """A view, and how to pick the matching positions.

    images: (B, 3, H', W'), the view. of_image, of_view: a feature map (B, D, h, w) of the image or of the view -> (B, N, D). In
    both, row n shows the same place.
    """

    images: torch.Tensor
    of_image: Callable[[torch.Tensor], torch.Tensor]
    of_view: Callable[[torch.Tensor], torch.Tensor]


def require_grid(side: int, shrink: int, kind: str) -> None:
    """Raises UserError if the positions of an image of `side` pixels and of its view ("flip" or "crop") do not match. With
    `shrink` > 1 the side must be 8 k + 1 for a flip and 8 k shrink + 1 for a crop."""
    step = STRIDE * (shrink if kind == "crop" else 1)
    if shrink > 1 and (side - 1) % step:
        fitting = (side - 1) // step * step + 1
        raise UserError(f"--data.crop {side} does not fit the {kind} view at --method.shrink {shrink}: choose {fitting}")


def flip_view(images: torch.Tensor, shrink: int = 1) -> View:
    """The images mirrored left-right.

    Feature column i looks at pixel 8 i. Only a width of 8 k + 1 mirrors the columns onto themselves, so up to 7 pixels are cut
    off first. A column that looks past the last pixel is not compared.
    shrink: the compared maps are that many times smaller. Raises UserError if the width does not fit then.
    """
    require_grid(images.shape[-1], shrink, "flip")
    columns = (images.shape[-1] - 1) // STRIDE + 1
    shown = (columns - 1) // shrink + 1
    return View(
        images[..., : (columns - 1) * STRIDE + 1].flip(-1),
        lambda image_map: _positions(image_map[..., :shown]),
        lambda view_map: _positions(view_map.flip(-1)),
    )


def crop_view(images: torch.Tensor, shrink: int = 1) -> View:
    """The top or the bottom of the images, at random: `KEPT_ROWS` of the feature map's rows, and all columns (the "translation"
    of the released CC4S).

    The window lies on the grid of the stride. shrink: the compared maps hold every `shrink`-th feature row. Raises UserError if
    the height does not fit. With `shrink` above 1 the height must be 8 k shrink + 1 pixels.
    """
    require_grid(images.shape[-2], shrink, "crop")
    step = STRIDE * shrink
    rows = (images.shape[-2] - 1) // step + 1
    kept = max(1, round(KEPT_ROWS * rows))
    top = random.choice((0, rows - kept))
    # The last row needs one pixel only, as the last row of the image does. A full cell would add another row.
    window = images[..., top * step : (top + kept - 1) * step + 1, :]
    return View(window, lambda image_map: _positions(image_map[..., top : top + kept, :]), _positions)


def _positions(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(2).mT
