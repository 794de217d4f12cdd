"""Probabilities of whole images, averaged over scales, mirror images and sliding windows."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice, product

import numpy as np
import torch
import torch.nn.functional as F

from config import InferenceConfig
from datasets.transforms import normalise, to_tensor
from engine.distributed import Process, autocast
from methods import METHODS
from methods.base import Method
from ops.resizing import resize

Predict = Callable[[torch.Tensor], torch.Tensor]
Sharpen = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

GROUP = 4  # most images of a split in one forward pass


def positions_of_process(length: int, process: Process) -> list[int]:
    """Returns this process's positions in a split. Groups of `GROUP` consecutive images are dealt round-robin to processes."""
    return [position for position in range(length) if position // GROUP % process.world == process.rank]


def on_grid(method: Method) -> Predict:
    """Returns `method.predict` for images of any size: the images are padded on the right and below with the mean colour (0),
    to sides that fit the network's maps (`Method.grid`), and the logits are cut to the images.

    On other sides, align_corners=True stretches the maps over the image: position i of a stride-8 map, which looks at pixel
    8 i, would be shown up to 7 pixels further right and down, and the maps of one encoder would not lie on each other.
    """

    def predict(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        return method.predict(padded(images, method.grid))[..., :height, :width]

    return predict


def padded(maps: torch.Tensor, grid: tuple[int, int], value: int = 0) -> torch.Tensor:
    """Returns images or labels (..., H, W), padded on the right and below with `value` to sides that fit `Method.grid`."""
    unit, rest = grid
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, (rest - width) % unit, 0, (rest - height) % unit), value=value)


def predict_split(
    predict: Predict,
    items: Iterable[dict[str, torch.Tensor]],
    positions: Iterable[int],
    config: InferenceConfig,
    device: torch.device,
    precision: str,
    sharpen: Sharpen | None = None,
) -> Iterator[tuple[int, dict[str, torch.Tensor], torch.Tensor]]:
    """Yields each position, its item, and the probabilities (C, H, W) of the item's "image" (3, H, W) on `device`, from
    `predict_probabilities`.

    Consecutive images of one size in a group of `GROUP` share a forward pass, up to `config.batch_pixels`. The images in a pass
    change the last digits of the result. The position in the split decides the group, so the digits are the same for any number
    of processes.
    """

    def kind(pair: tuple[int, dict[str, torch.Tensor]]) -> tuple:
        return pair[0] // GROUP, pair[1]["image"].shape

    for (_, (_, height, width)), alike in groupby(zip(positions, items, strict=True), kind):
        while together := list(islice(alike, max(1, config.batch_pixels // (height * width)))):
            images = torch.stack([item["image"] for _, item in together]).to(device)
            with autocast(device, precision):
                probabilities = predict_probabilities(predict, images, config, sharpen)
            for (position, item), of_image in zip(together, probabilities, strict=True):
                yield position, item, of_image


def predict_probabilities(
    predict: Predict, images: torch.Tensor, config: InferenceConfig, sharpen: Sharpen | None = None
) -> torch.Tensor:
    """Returns probabilities (B, C, H, W) float32 of images (B, 3, H, W) uint8 RGB, the mean over scales and mirror images.

    predict: normalised images (B, 3, h, w) -> logits (B, C, h, w). At each scale the images are resized (align_corners=True),
    predicted whole or window by window, and the probabilities are resized back. With `config.average` "logits", the logits are
    averaged, and the softmax follows. sharpen: a function of the probabilities (C, H, W) of an image and the image (3, H, W)
    uint8, applied at each scale before the mean; not for logits.
    """
    normalised = normalise(images)
    height, width = images.shape[-2:]
    base = 1.0 if config.long_side is None else config.long_side / max(height, width)
    total = torch.zeros(())
    for number, scale in enumerate(config.scales):
        size = tuple(max(1, round(side * base * scale)) for side in (height, width))
        predicted = _resize(_average(predict, _resize(normalised, size), config), (height, width))
        if sharpen is not None:
            predicted = torch.stack([sharpen(*pair) for pair in zip(predicted, images, strict=True)])
        total = total.add_(predicted) if number else predicted
    total.div_(len(config.scales))
    return total.softmax(dim=1) if config.average == "logits" else total


def predict_image(
    predict: Predict, image: np.ndarray, config: InferenceConfig, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns `predict_probabilities` of one image, (H, W, 3) uint8 RGB -> (C, H, W) float32 on `device`."""
    return predict_probabilities(predict, to_tensor(image)[None].to(device), config)[0]


def note_preset(preset: str, method: Method) -> None:
    """Prints a note if `preset` belongs to another method."""
    if preset in METHODS and preset != method.preset:
        print(f"note: --preset {preset} belongs to another method; this method's is --preset {method.preset}", file=sys.stderr)


def most_likely(probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the most likely class ids (H, W) int64 of probabilities (C, H, W)."""
    return probabilities.max(dim=0).indices  # argmax takes 30 times as long along the first axis on a CPU


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Returns the first pixels of windows that cover `side` pixels in steps of `stride`. The last ends with the image."""
    if side <= window:
        return [0]
    count = math.ceil((side - window) / stride) + 1
    return [min(number * stride, side - window) for number in range(count)]


def _average(predict: Predict, images: torch.Tensor, config: InferenceConfig) -> torch.Tensor:
    """Returns probabilities or logits (B, C, H, W) of images (B, 3, H, W), the mean over their windows (or whole images) and
    mirror images.

    Windows of all images share forward passes, up to `config.batch_pixels` pixels. A side shorter than the window is padded
    with the channel mean (0). Windows may overlap unevenly, so each prediction is weighted before it is added. The memory
    holds the sums alone.
    """
    height, width = images.shape[-2:]
    rows, columns = config.window or height, config.window or width
    images = F.pad(images, (0, max(0, columns - width), 0, max(0, rows - height)))
    tops, lefts = (
        window_starts(side, window, max(1, round(window * config.window_stride)))
        for side, window in zip(images.shape[-2:], (rows, columns), strict=True)
    )
    count = images.new_zeros(images.shape[-2:])
    for top, left in product(tops, lefts):
        count[top : top + rows, left : left + columns] += 1
    mirrorings = (False, True) if config.flip else (False,)
    weight = 1 / (count * len(mirrorings))
    views = {mirrored: images.flip(-1) if mirrored else images for mirrored in mirrorings}
    windows = list(product(range(len(images)), mirrorings, tops, lefts))
    at_once = max(1, config.batch_pixels // (rows * columns))
    total: torch.Tensor | None = None
    for start in range(0, len(windows), at_once):
        chunk = windows[start : start + at_once]
        crops = [views[mirrored][of, :, top : top + rows, left : left + columns] for of, mirrored, top, left in chunk]
        predictions = predict(torch.stack(crops))
        if config.average == "probabilities":
            predictions = predictions.softmax(dim=1)
        for (of, mirrored, top, left), prediction in zip(chunk, predictions, strict=True):
            if total is None:
                total = images.new_zeros(len(images), len(prediction), *images.shape[-2:])
            prediction = prediction * weight[top : top + rows, left : left + columns]
            if mirrored:
                prediction, left = prediction.flip(-1), images.shape[-1] - left - columns
            total[of, :, top : top + rows, left : left + columns] += prediction
    assert total is not None, "there is at least one window"
    return total[..., :height, :width]


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[-2:] == size else resize(maps, size, align_corners=True)
