"""Views of a batch whose feature positions match the image's own, one to one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from errors import UserError
from models.resnet import STRIDE


@dataclass(frozen=True)
class View:
    """A view, and the rows of the image's and of the view's maps that show the same places in the same order.

    images: (B, 3, H', W'). of_image, of_view: (B, D, h, w) map of the image's, of the view's -> (B, N, D).
    """

    images: torch.Tensor
    of_image: Callable[[torch.Tensor], torch.Tensor]
    of_view: Callable[[torch.Tensor], torch.Tensor]


def flip_view(images: torch.Tensor) -> View:
    """The images mirrored left-right.

    Feature column i looks at pixel 8 i, so only a width of 8 k + 1 mirrors its columns onto themselves: what is beyond
    (at most 7 pixels, no column of its own) is cut off before.
    """
    width = (images.shape[-1] - 1) // STRIDE * STRIDE + 1
    return View(images[..., :width].flip(-1), _positions, lambda view_map: _positions(view_map.flip(-1)))


def crop_view(images: torch.Tensor, shrink: int = 1, share: float = 0.75) -> View:
    """A window at a random place, `share` of the feature map's rows and columns, cut on the stride's grid.

    shrink: the maps compared hold every `shrink`-th feature row and column; raises UserError where the feature map's sides
    are not k * shrink + 1, since then the window's positions would lie between the image's.
    """
    spans = [_random_span(side, shrink, share) for side in images.shape[-2:]]
    (top, rows), (left, columns) = spans
    step = STRIDE * shrink
    # The last position needs its own pixel only, as the image's last does; a full cell would make one row more.
    window = images[..., top * step :, left * step :][..., : (rows - 1) * step + 1, : (columns - 1) * step + 1]
    return View(window, lambda image_map: _positions(image_map[..., top : top + rows, left : left + columns]), _positions)


def _random_span(side: int, shrink: int, share: float) -> tuple[int, int]:
    features = (side - 1) // STRIDE + 1
    if (features - 1) % shrink:
        raise UserError(
            f"{features} feature rows of a {side} pixel crop do not fit the crop view at --model.shrink {shrink}: "
            f"choose --data.crop {(features - 1) // shrink * shrink * STRIDE + 1} or --method.view flip"
        )
    positions = (features - 1) // shrink + 1
    kept = max(1, round(share * positions))
    return int(torch.randint(positions - kept + 1, ())), kept


def _positions(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(2).mT
