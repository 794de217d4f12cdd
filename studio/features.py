"""What the studio knows of a picture without training: features of each place, superpixels, and one vector of the whole."""

import cv2
import numpy as np
import torch
from skimage.color import rgb2lab

from datasets.superpixel_graph import segment
from datasets.transforms import normalise, to_tensor
from models.encoder import build_encoder
from models.pretrained import load_encoder
from ops.resizing import resize

ENCODER = "timm:efficientnet_lite0"  # its ImageNet weights are installed with the requirements
STRIDES = (4, 8, 16, 32)  # stride 32 tells the classes of photos apart: docs/studio.md
LONG_SIDE = 512  # pictures are analysed at this size
SUPERPIXEL = 100  # pixels of a superpixel, on average
THUMBNAIL = 224


class Analyser:
    """The pretrained encoder that all pictures go through."""

    def __init__(self) -> None:
        self.encoder = build_encoder(ENCODER, STRIDES[0]).eval()
        load_encoder(self.encoder, ENCODER, "imagenet")

    @torch.inference_mode()
    def places(self, image: np.ndarray) -> np.ndarray:
        """Returns features (h, w, D) float16 of an analysed image (H, W, 3) uint8 RGB: the encoder's maps of strides 4 to 32
        on the grid of stride 4, each map divided by its deviation, and Lab colours at three scales of blur."""
        maps = [
            features
            for features, stride in zip(self.encoder(normalise(to_tensor(image)[None])), self.encoder.strides, strict=True)
            if stride in STRIDES
        ]
        height, width = maps[0].shape[-2:]
        deep = [resize(one, (height, width), align_corners=False)[0] / one.std().clamp_min(1e-6) for one in maps]
        colours = rgb2lab(image).astype(np.float32) / 50
        blurred = [cv2.GaussianBlur(colours, (0, 0), sigma) for sigma in (1, 4, 12)]
        near = [cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in blurred]
        return np.concatenate([torch.cat(deep).permute(1, 2, 0).numpy(), *near], axis=2).astype(np.float16)

    @torch.inference_mode()
    def whole(self, image: np.ndarray) -> np.ndarray:
        """Returns a vector (D,) float32 of length 1 that is alike for pictures that look alike."""
        small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        vector = self.encoder(normalise(to_tensor(small)[None]))[-1].mean(dim=(2, 3))[0].numpy()
        return vector / np.linalg.norm(vector).clip(1e-12)


def analysed(image: np.ndarray) -> np.ndarray:
    """Returns an image (H, W, 3) uint8, resized to the longer side `LONG_SIDE`."""
    factor = LONG_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def superpixels(image: np.ndarray) -> np.ndarray:
    """Returns superpixel ids (H, W) uint16 of an analysed image."""
    return segment(image, max(1, image[..., 0].size // SUPERPIXEL), compactness=10.0)
