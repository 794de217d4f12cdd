"""Probabilities of whole images: scales, flips and sliding windows, averaged."""

import math
from collections.abc import Callable

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
        probabilities = _whole_or_windows(predict, scaled, config)
        if config.flip:
            probabilities = (probabilities + _whole_or_windows(predict, scaled.flip(-1), config).flip(-1)) / 2
        probabilities = _resize(probabilities, (height, width))[0]
        if sharpen is not None:
            probabilities = sharpen(probabilities)
        total = probabilities if total is None else total + probabilities
    return total / len(config.scales)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover `side` pixels `stride` apart; the last is moved back to end with the image."""
    if side <= window:
        return [0]
    count = math.ceil((side - window) / stride) + 1
    return [min(number * stride, side - window) for number in range(count)]


def _whole_or_windows(predict: Predict, image: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """(1, 3, H, W) -> probabilities (1, C, H, W); where windows overlap, their mean. A side shorter than the window is
    padded with the channel mean (0)."""
    height, width = image.shape[-2:]
    window = config.window
    if window is None:
        return predict(image).softmax(dim=1)
    padded = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
    stride = max(1, round(window * config.window_stride))
    total, count = None, padded.new_zeros(padded.shape[-2:])
    for top in window_starts(padded.shape[-2], window, stride):
        for left in window_starts(padded.shape[-1], window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            probabilities = predict(padded[place]).softmax(dim=1)
            if total is None:
                total = probabilities.new_zeros(1, probabilities.shape[1], *padded.shape[-2:])
            total[place] += probabilities
            count[place] += 1
    return (total / count)[..., :height, :width]


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=True)
