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
