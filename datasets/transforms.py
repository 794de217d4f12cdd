"""Augmentation: one random affine transform of the image and its maps, then colour changes of the image alone."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional as colours

from datasets.files import NO_SUPERPIXEL, UNLABELLED

# ImageNet's channel statistics in RGB, which torchvision's weights expect.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

# Values of the maps outside the image. The soft entropy does not count boundary and outside pixels.
PADDING = {"label": UNLABELLED, "superpixel": NO_SUPERPIXEL, "boundary": 1, "outside": 1}


@dataclass(frozen=True)
class Augmentation:
    """Random scale, rotation, flip and crop in one affine transform; then blur, colour jitter and greyscale of the image.

    crop: side of the result, pixels. scale: range of the factor. rotation: largest angle either way, degrees. blur_sigma: range
    of the standard deviation, pixels. jitter_strength: see `jittered`. The other fields are probabilities.
    """

    crop: int
    scale: tuple[float, float]
    rotation: float
    rotation_probability: float
    flip: float
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.15, 1.15)
    jitter: float = 0.0
    jitter_strength: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.25)
    grey: float = 0.0

    def __call__(
        self, image: np.ndarray, maps: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """image (H, W, 3) uint8, maps (H, W) uint8 or uint16 named as in `PADDING` -> the same, crop x crop.

        The image is resampled linearly and padded with ImageNet's mean colour (0 once normalised). Maps take the nearest pixel.
        """
        matrix = self.affine(image.shape[0], image.shape[1], rng)
        maps = {name: self.warp_map(name, array, matrix) for name, array in maps.items()}
        return self.recolour(self.warp_image(image, matrix), rng), maps

    def affine(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Draws a (2, 3) float64 matrix from image to crop coordinates (pixel centres at integers)."""
        return self.placed(self.linear(rng), (height, width), rng)

    def linear(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Draws scale, rotation and flip. Returns their (2, 2) float64 matrix, and the scale."""
        scale = rng.uniform(*self.scale)
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation)) * (rng.random() < self.rotation_probability)
        mirror = -1.0 if rng.random() < self.flip else 1.0
        return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1.0], scale

    def placed(
        self,
        linear: tuple[np.ndarray, float],
        size: tuple[int, ...],
        rng: np.random.Generator,
        around: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws the place of the crop. Returns the (2, 3) matrix. linear: from `linear`. size: height and width of the image.

        The crop lies anywhere inside the scaled image. Where the image is the smaller one, it lies anywhere inside the crop.
        around: (2,), row and column of a pixel of the image; the crop then lies around this pixel, as far as the image reaches.
        """
        (matrix, scale), (height, width) = linear, size
        slack = np.abs(np.array([width, height]) * scale - self.crop) / 2
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        offset = rng.uniform(-slack, slack) if around is None else np.clip(matrix @ (centre - around[::-1]), -slack, slack)
        return np.column_stack([matrix, (self.crop - 1) / 2 + offset - matrix @ centre])

    def warp_map(self, name: str, array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns the crop of a map (H, W), which `name` is the key of in `PADDING`."""
        size = (self.crop, self.crop)
        return cv2.warpAffine(array, matrix, size, flags=cv2.INTER_NEAREST, borderValue=PADDING[name])

    def warp_image(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Returns the crop of an image (H, W, 3) uint8."""
        mean = tuple((MEAN * 255).tolist())
        return cv2.warpAffine(image, matrix, (self.crop, self.crop), flags=cv2.INTER_LINEAR, borderValue=mean)

    def recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns an image (H, W, 3) uint8 after random blur, colour jitter and greyscale."""
        if rng.random() < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*self.blur_sigma))
        if rng.random() < self.jitter:
            image = jittered(image, self.jitter_strength, rng)
        if rng.random() < self.grey:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        return image


def jittered(image: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue of an image (H, W, 3) uint8 one after the other, in a random order, like
    torchvision's ColorJitter.

    strength: of brightness, contrast, saturation, hue. The factor of the first three lies between 1 - strength (at least 0) and
    1 + strength. The hue turns by up to strength full turns (at most 0.5) either way.
    """
    *factors, turn = strength
    changes: list[tuple[Callable[[torch.Tensor, float], torch.Tensor], float]] = [
        (change, rng.uniform(max(0.0, 1 - most), 1 + most))
        for change, most in zip(
            (colours.adjust_brightness, colours.adjust_contrast, colours.adjust_saturation), factors, strict=True
        )
    ]
    changes.append((colours.adjust_hue, rng.uniform(-turn, turn)))
    tensor = to_tensor(image)
    for place in rng.permutation(len(changes)):
        change, amount = changes[place]
        tensor = change(tensor, amount)
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) uint8. The memory stays channels last."""
    return torch.from_numpy(image).permute(2, 0, 1)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """(..., 3, H, W) uint8 RGB -> float32, normalised by ImageNet's statistics. Device and memory format stay the same."""
    mean, deviation = _statistics(image.device)
    return image.float().sub_(mean).div_(deviation)


def unit_colours(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalise` without rounding, from 0 to 1: (..., 3, H, W) float32."""
    mean, deviation = _statistics(images.device)
    return (images * deviation + mean) / 255


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalise`, to show images: (B, 3, H, W) float32 -> (B, H, W, 3) uint8 RGB."""
    mean, deviation = _statistics(images.device)
    return images.mul(deviation).add(mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@functools.cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of byte values, (3, 1, 1) each. Cached: copying them to a GPU would make every step wait."""
    with torch.inference_mode(False):  # training cannot use a tensor made in inference mode
        mean, deviation = (torch.from_numpy(255 * values).to(device).view(3, 1, 1) for values in (MEAN, STD))
    return mean, deviation
