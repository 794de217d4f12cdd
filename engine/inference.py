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
from errors import UserError
from methods import METHODS
from methods.base import Method
from ops.resizing import resize
from ops.seeds import over_largest, tag_logits

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


def padded_with_outside(images: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `padded` images (B, 3, H', W'), and where they are padding: (B, H', W') bool."""
    whole = padded(images, grid)
    outside = torch.ones_like(whole[:, 0], dtype=torch.bool)
    outside[:, : images.shape[-2], : images.shape[-1]] = False
    return whole, outside


def _outputs(method: Method, images: torch.Tensor, config: InferenceConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns `on_grid(method)(images)`, and the probabilities (B, C - 1) of the images' tags if a setting needs the
    classifier. The classifier pools over the cells whose centre lies in the image."""
    if config.tag_gate is None and not config.nearest:
        return on_grid(method)(images), None
    height, width = images.shape[-2:]
    whole, outside = padded_with_outside(images, method.grid)
    logits, activations = method.predict_and_classify(whole, config.nearest)
    return logits[..., :height, :width], tag_logits(activations, outside).sigmoid()


def predict_split(
    method: Method,
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
                probabilities = predict_probabilities(method, images, config, sharpen=sharpen)
            for (position, item), of_image in zip(together, probabilities, strict=True):
                yield position, item, of_image


def predict_probabilities(
    method: Method,
    images: torch.Tensor,
    config: InferenceConfig,
    allowed: torch.Tensor | None = None,
    sharpen: Sharpen | None = None,
) -> torch.Tensor:
    """Returns probabilities (B, C, H, W) float32 of images (B, 3, H, W) uint8 RGB, the mean over scales and mirror images.

    At each scale the images are resized (align_corners=True), predicted whole or window by window, and the probabilities are
    resized back. With `config.average` "logits", the logits are averaged, and the softmax follows. `restricted` comes last.
    allowed: the classes that each image may have, (B, C) bool; None: those that `config.tag_gate` keeps. sharpen: a function
    of the probabilities (C, H, W) of an image and the image (3, H, W) uint8, applied at each scale before the mean; not for
    logits.
    """
    normalised = normalise(images)
    height, width = images.shape[-2:]
    base = 1.0 if config.long_side is None else config.long_side / max(height, width)
    total = torch.zeros(())
    tags: list[torch.Tensor] = []
    for number, scale in enumerate(config.scales):
        size = tuple(max(1, round(side * base * scale)) for side in (height, width))
        predicted, of_tags = _average(method, _resize(normalised, size), config)
        predicted = _resize(predicted, (height, width), config.nearest)
        tags += [] if of_tags is None else [of_tags]
        if sharpen is not None:
            predicted = torch.stack([sharpen(*pair) for pair in zip(predicted, images, strict=True)])
        total = total.add_(predicted) if number else predicted
    total.div_(len(config.scales))
    probabilities = total.softmax(dim=1) if config.average == "logits" else total
    if allowed is None and config.tag_gate is not None:
        allowed = F.pad(torch.stack(tags).mean(dim=0) >= config.tag_gate, (1, 0), value=True)
    return restricted(probabilities, allowed, config)


def restricted(probabilities: torch.Tensor, allowed: torch.Tensor | None, config: InferenceConfig) -> torch.Tensor:
    """Returns probabilities (B, C, H, W) in which other classes than the allowed ones, (B, C) bool, are 0. None: all.

    With `config.seed_scores`, the score of class c > 0 is its probability over its largest probability in the image, and the
    score of class 0 is (1 - largest score) ** background_power (Jo et al.'s release). The scores are divided by their sum.
    """
    if config.seed_scores:
        scores = over_largest(probabilities[:, 1:])
        if allowed is not None:
            scores = scores * allowed[:, 1:, None, None]
        background = (1 - scores.amax(dim=1, keepdim=True)) ** config.background_power
        probabilities = torch.cat([background, scores], dim=1)
    elif allowed is None:
        return probabilities
    if allowed is not None:
        probabilities = probabilities * allowed[..., None, None]
    return probabilities / probabilities.sum(dim=1, keepdim=True).clamp_min(1e-12)


def predict_image(
    method: Method,
    image: np.ndarray,
    config: InferenceConfig,
    device: torch.device | str = "cpu",
    allowed: np.ndarray | None = None,
) -> torch.Tensor:
    """Returns `predict_probabilities` of one image, (H, W, 3) uint8 RGB -> (C, H, W) float32 on `device`.

    allowed: the classes that the image may have, (C,) bool.
    """
    classes = None if allowed is None else torch.from_numpy(allowed)[None].to(device)
    return predict_probabilities(method, to_tensor(image)[None].to(device), config, classes)[0]


def check_inference(config: InferenceConfig, method: Method) -> None:
    """Raises UserError for settings that need a classifier of tags, if the method has none."""
    for flag, given in (("tag_gate", config.tag_gate is not None), ("nearest", config.nearest)):
        if given and not method.classifies:
            raise UserError(f"--inference.{flag} needs a network that also classifies images, such as recurseed's")


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


def _average(method: Method, images: torch.Tensor, config: InferenceConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns probabilities or logits (B, C, H, W) of images (B, 3, H, W), and the probabilities of their tags (B, C - 1) as
    from `_outputs`: the mean over their windows (or whole images) and mirror images.

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
    tags: list[torch.Tensor] = []
    for start in range(0, len(windows), at_once):
        chunk = windows[start : start + at_once]
        crops = [views[mirrored][of, :, top : top + rows, left : left + columns] for of, mirrored, top, left in chunk]
        predictions, of_tags = _outputs(method, torch.stack(crops), config)
        tags += [] if of_tags is None else [of_tags]
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
    of_images = torch.cat(tags).unflatten(0, (len(images), -1)).mean(dim=1) if tags else None
    return total[..., :height, :width], of_images


def _resize(maps: torch.Tensor, size: tuple[int, int], nearest: bool = False) -> torch.Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size) if nearest else resize(maps, size, align_corners=True)
