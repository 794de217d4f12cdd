"""Probabilities of whole images: scales, flips and sliding windows, averaged."""

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

from config import InferenceConfig

Predict = Callable[[torch.Tensor], torch.Tensor]


def predict_probabilities(
    predict: Predict, image: torch.Tensor, config: InferenceConfig, sharpen: Predict | None = None
) -> torch.Tensor:
    """image (3, H, W) float32 normalised -> probabilities (C, H, W) float32, the mean over scales and flips.

    predict: images (B, 3, h, w) -> logits (B, C, h, w). At each scale the image is resized (align_corners=True),
    predicted whole or window by window, and its probabilities are resized back. sharpen: what each scale's probabilities
    (C, H, W) go through before the mean.
    """
    height, width = image.shape[-2:]
    base = 1.0 if config.long_side is None else config.long_side / max(height, width)
    total = None
    for scale in config.scales:
        size = tuple(max(1, round(side * base * scale)) for side in (height, width))
        scaled = _resize(image.unsqueeze(0), size)
        probabilities = _resize(_average(predict, scaled, config).unsqueeze(0), (height, width))[0]
        if sharpen is not None:
            probabilities = sharpen(probabilities)
        total = probabilities if total is None else total.add_(probabilities)
    return total.div_(len(config.scales))


def most_likely(probabilities: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (H, W) int64 class ids."""
    return probabilities.max(dim=0).indices  # argmax's, which on a CPU takes 30 times as long along the first axis


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover `side` pixels `stride` apart; the last is moved back to end with the image."""
    if side <= window:
        return [0]
    count = math.ceil((side - window) / stride) + 1
    return [min(number * stride, side - window) for number in range(count)]


def _average(predict: Predict, image: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """(1, 3, H, W) -> probabilities (C, H, W): of the whole image or the mean over its windows, and over its mirror image.

    Windows of both go through the network together, up to `config.batch_pixels` pixels. A side shorter than the window is
    padded with the channel mean (0). Windows may overlap unevenly, so each is weighted as it is added up: nothing but the
    sum is held.
    """
    height, width = image.shape[-2:]
    rows, columns = config.window or height, config.window or width
    image = F.pad(image, (0, max(0, columns - width), 0, max(0, rows - height)))
    tops, lefts = (
        window_starts(side, window, max(1, round(window * config.window_stride)))
        for side, window in zip(image.shape[-2:], (rows, columns), strict=True)
    )
    count = image.new_zeros(image.shape[-2:])
    for top, left in product(tops, lefts):
        count[top : top + rows, left : left + columns] += 1
    mirrorings = (False, True) if config.flip else (False,)
    weight = 1 / (count * len(mirrorings))
    images = {mirrored: image.flip(-1) if mirrored else image for mirrored in mirrorings}
    windows = list(product(mirrorings, tops, lefts))
    at_once = max(1, config.batch_pixels // (rows * columns))
    total = None
    for start in range(0, len(windows), at_once):
        chunk = windows[start : start + at_once]
        crops = [images[mirrored][..., top : top + rows, left : left + columns] for mirrored, top, left in chunk]
        for (mirrored, top, left), probabilities in zip(chunk, predict(torch.cat(crops)).softmax(dim=1), strict=True):
            if total is None:
                total = image.new_zeros(len(probabilities), *image.shape[-2:])
            probabilities = probabilities * weight[top : top + rows, left : left + columns]
            if mirrored:
                probabilities, left = probabilities.flip(-1), image.shape[-1] - left - columns
            total[:, top : top + rows, left : left + columns] += probabilities
    return total[:, :height, :width]


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=True)
