"""The local aggregation module (LAM) of BLPSeg: averages logits over nearby positions of similar appearance."""

import torch
import torch.nn.functional as F
from torch import nn

from ops.walk import walk

STRIDE = 4


class PatchEmbedding(nn.Module):
    """The appearance of a position: a convolution of its 4x4 image patch, layer norm over channels, a 1x1 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, STRIDE, STRIDE)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, width, ceil(H/4), ceil(W/4)). Patches are padded with 0 beyond the border."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
        patches = self.proj(images)
        return self.conv(self.norm(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def local_aggregation(logits: torch.Tensor, features: torch.Tensor, sigma: float) -> torch.Tensor:
    """The weighted mean of the logits over all positions a. The weights for position b are
    exp(f_a . f_b - |a - b|^2 / (2 sigma^2)) (BLPSeg, LAM).

    logits: (B, C, h, w). features: (B, D, h, w), f. sigma in positions. Returns (B, C, h, w), the logits' dtype.

    The paper multiplies the softmax of f f^T by a Gaussian and divides by the sum over a. The softmax denominator cancels.
    |a - b|^2 is |a|^2 + |b|^2 - 2 a . b, and |b|^2 cancels, too. So positions become three more channels of f, and `walk`
    computes the result with its N x N matrix in blocks. A window of a few sigma would be wrong: energies are unbounded, and a
    far position counts if its energy is larger by d^2 / (2 sigma^2).
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    height, width = features.shape[-2:]
    # Coordinates start in the middle: their squares stay small beside the energies.
    rows = (torch.arange(height, device=features.device, dtype=dtype) - (height - 1) / 2) / sigma
    columns = (torch.arange(width, device=features.device, dtype=dtype) - (width - 1) / 2) / sigma
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(features), 2, height, width)
    square = place.square().sum(dim=1, keepdim=True)
    query = torch.cat([features, place, torch.ones_like(square)], dim=1)
    key = torch.cat([features, place, -square / 2], dim=1)
    return walk(query, key, logits)
