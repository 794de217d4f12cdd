"""Decoders that bring stride-8 features to finer maps: for thin structures, which stride 8 loses."""

from collections.abc import Sequence

import torch
from torch import nn

from models.layers import conv_bn_relu
from ops.resizing import resize


class LowLevelDecoder(nn.Module):
    """Features fused with the encoder's stride-4 map by two 3x3 convolutions (Chen et al., DeepLabv3+, ECCV 2018)."""

    width = 256

    def __init__(self, features: int, finer: Sequence[int]):
        """features: width of the stride-8 features. finer: widths of the encoder's maps of stride 4."""
        super().__init__()
        self.lateral = conv_bn_relu(finer[-1], 48, 1)
        self.fuse = nn.Sequential(
            *conv_bn_relu(features + 48, self.width, 3), *conv_bn_relu(self.width, self.width, 3), nn.Dropout2d(0.1)
        )

    def forward(self, features: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        """(B, features, h, w) -> (B, 256, H/4, W/4)."""
        lateral = self.lateral(finer[-1])
        return self.fuse(torch.cat([resize(features, lateral.shape[-2:], align_corners=True), lateral], dim=1))


class UNetDecoder(nn.Module):
    """Features brought to full size step by step, each step fused with the encoder's map of its stride, the last step with the
    image (Ronneberger et al., U-Net, MICCAI 2015)."""

    width = 32
    WIDTHS = (128, 64)

    def __init__(self, features: int, finer: Sequence[int]):
        """features: width of the stride-8 features. finer: widths of the encoder's maps of strides 2 and 4, finest first; a
        network without a map of stride 2 skips this step."""
        super().__init__()
        steps, inputs = [], features
        for lateral, outputs in zip(reversed(finer), self.WIDTHS, strict=False):
            steps.append(_double(inputs + lateral, outputs))
            inputs = outputs
        self.steps = nn.ModuleList([*steps, _double(inputs + 3, self.width)])

    def forward(self, features: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        """(B, features, h, w) -> (B, 32, H, W)."""
        assert images is not None
        for step, lateral in zip(self.steps, [*reversed(finer), images], strict=True):
            features = step(torch.cat([resize(features, lateral.shape[-2:], align_corners=True), lateral], dim=1))
        return features


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn_relu(inputs, outputs, 3), *conv_bn_relu(outputs, outputs, 3))
