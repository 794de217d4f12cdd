"""The local aggregation module (LAM) of BLPSeg: logits averaged over near positions that look alike."""

import torch
import torch.nn.functional as F
from torch import nn

from ops.walk import walk

STRIDE = 4


class PatchEmbedding(nn.Module):
    """What a position looks like: a 4x4 patch of the image through a convolution, layer norm over channels, 1x1 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, STRIDE, STRIDE)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, width, ceil(H/4), ceil(W/4)); what a patch sees beyond the border is 0."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        patches = self.proj(images)
        return self.conv(self.norm(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def local_aggregation(logits: torch.Tensor, features: torch.Tensor, sigma: float) -> torch.Tensor:
    """Mean of the logits at all positions a, weighted for position b by exp(f_a . f_b - |a - b|^2 / (2 sigma^2)) (BLPSeg, LAM).

    logits: (B, C, h, w). features: (B, D, h, w), f. sigma in positions. Returns (B, C, h, w), the logits' dtype.

    This is the paper's softmax of f f^T times a Gaussian, divided by its sum over a: what the softmax divides by falls out.
    And |a - b|^2 = |a|^2 + |b|^2 - 2 a . b, of which |b|^2 falls out too, so positions are three more channels of f and the
    whole is the random walk of CC4S with other queries and keys, which holds its N x N matrix a block at a time. A window
    of a few sigma would not do: energies are unbounded, and a far position whose energy is d^2 / (2 sigma^2) larger counts
    as much.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    height, width = features.shape[-2:]
    # Counted from the middle, so that the squares stay small beside the energies that they are added to.
    rows = (torch.arange(height, device=features.device, dtype=dtype) - (height - 1) / 2) / sigma
    columns = (torch.arange(width, device=features.device, dtype=dtype) - (width - 1) / 2) / sigma
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(features), 2, height, width)
    square = place.square().sum(dim=1, keepdim=True)
    query = torch.cat([features, place, torch.ones_like(square)], dim=1)
    key = torch.cat([features, place, -square / 2], dim=1)
    return walk(query, key, logits)
