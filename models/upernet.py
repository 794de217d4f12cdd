"""UPerNet: pyramid pooling of an encoder's last map, and a top-down decoder to stride 4."""

import torch
from torch import nn

from models.layers import conv_bn_relu
from ops.resizing import resize


class MeanOfParts(nn.Module):
    """nn.AdaptiveAvgPool2d as two products with small matrices. Unlike torch's, the products export at any size, and their
    gradient is deterministic on a GPU."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, D, size, size)."""
        dtype = torch.promote_types(features.dtype, torch.float32)  # half precision would round sums of many
        rows, columns = (self._parts(length, features.device).to(dtype) for length in features.shape[-2:])
        with torch.autocast(features.device.type, enabled=False):
            return (rows @ features.to(dtype) @ columns.mT).to(features.dtype)

    def _parts(self, length: int, device: torch.device) -> torch.Tensor:
        """(size, length): the equal weights of each part, with sum 1. Parts overlap by one place if `size` does not divide
        `length`."""
        part, place = (torch.arange(count, device=device) for count in (self.size, length))
        start, end = part * length // self.size, -(-(part + 1) * length // self.size)
        inside = (place >= start[:, None]) & (place < end[:, None])
        return inside / inside.sum(dim=1, keepdim=True)


class PyramidPooling(nn.Module):
    """The features, concatenated with their means over 1x1, 2x2, 3x3 and 6x6 parts of the map, then a 1x1 convolution to
    `outputs` channels (Zhao et al., PSPNet, CVPR 2017)."""

    SIZES = (1, 2, 3, 6)

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(MeanOfParts(size), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            for size in self.SIZES
        )
        self.bottleneck = nn.Sequential(*conv_bn_relu(inputs + len(self.SIZES) * outputs, outputs, 1), nn.Dropout2d(0.1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, outputs, h, w)."""
        size = features.shape[-2:]
        pooled = [resize(stage(features), size, align_corners=True) for stage in self.stages]
        return self.bottleneck(torch.cat([*pooled, features], dim=1))


class UPerNetDecoder(nn.Module):
    """A feature pyramid over an encoder's maps, the pooled last map on top. All levels are fused at the finest (Xiao et al.,
    UPerNet, ECCV 2018)."""

    def __init__(self, inputs: list[int], width: int):
        """inputs: widths of the maps below the top, finest first."""
        super().__init__()
        self.lateral_convs = nn.ModuleList(conv_bn_relu(channels, width, 1) for channels in inputs)
        self.fpn_convs = nn.ModuleList(conv_bn_relu(width, width, 3) for _ in inputs)
        self.fpn_bottleneck = conv_bn_relu((len(inputs) + 1) * width, width, 3)

    def forward(self, maps: list[torch.Tensor], top: torch.Tensor) -> torch.Tensor:
        """maps: below the top, finest first. top: (B, width, h, w). Returns (B, width) at the size of the finest map."""
        levels = [top]
        for conv, features in zip(reversed(self.lateral_convs), reversed(maps), strict=True):
            levels.append(conv(features) + resize(levels[-1], features.shape[-2:], align_corners=False))
        top, *levels = levels
        levels = [conv(level) for conv, level in zip(self.fpn_convs, reversed(levels), strict=True)]
        size = levels[0].shape[-2:]
        return self.fpn_bottleneck(torch.cat([resize(level, size, align_corners=False) for level in (*levels, top)], dim=1))
