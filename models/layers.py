"""Building blocks that the networks share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU. The convolution keeps the size, or divides the size by `stride`."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ASPP(nn.Module):
    """Atrous spatial pyramid: a 1x1 convolution, 3x3 convolutions at three rates, and global pooling, each `outputs` wide; then
    `project` over all five (Chen et al., DeepLabv3, 2017)."""

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, int, int], project: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, outputs, 1), *(conv_bn_relu(inputs, outputs, 3, rate) for rate in rates)]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs, 1))
        self.project = project

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) -> `project` of (B, 5 * outputs, h, w)."""
        pooled = self.pooled(features).expand(-1, -1, *features.shape[-2:])
        return self.project(torch.cat([*(branch(features) for branch in self.branches), pooled], dim=1))


@contextmanager
def running_statistics_untouched(network: nn.Module) -> Iterator[None]:
    """A context in which batch norms in training mode update throw-away copies instead of their running statistics.

    Copies, because SyncBatchNorm without statistics (`track_running_stats` off) refuses bfloat16 on a GPU.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, torch.empty_like(buffer))
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
