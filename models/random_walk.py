"""The random walk on the feature map."""

import torch
import torch.nn.functional as F
from torch import nn


class RandomWalk(nn.Module):
    """One step of a random walk over the N positions of a feature map (CC4S, random-walk module): gamma * P V + x.

    Energy E = Q K^T, not scaled, transition P = softmax(E) over the keys, gamma learned from 0. With `shrink` > 1 the
    walk runs on the map resampled to (n - 1) // shrink + 1 positions a side, and P V is resampled back before it is added.
    """

    def __init__(self, width: int, shrink: int = 1):
        super().__init__()
        self.shrink = shrink
        self.query_conv = nn.Conv2d(width, width // 8, 1)
        self.key_conv = nn.Conv2d(width, width // 8, 1)
        self.value_conv = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """features: (B, D, h, w) -> the same shape after the walk, and the queries and keys of `query_key`."""
        small = self._shrunk(features)
        query, key = self.query_conv(small), self.key_conv(small)
        walked = walk(query, key, self.value_conv(small))
        if self.shrink > 1:
            walked = _resize(walked, features.shape[-2:])
        return self.gamma * walked + features, query, key

    def query_key(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the energy alone: features (B, D, h, w) -> queries and keys, each (B, D/8, h', w') at the shrunken
        size."""
        small = self._shrunk(features)
        return self.query_conv(small), self.key_conv(small)

    def _shrunk(self, features: torch.Tensor) -> torch.Tensor:
        if self.shrink == 1:
            return features
        return _resize(features, tuple((side - 1) // self.shrink + 1 for side in features.shape[-2:]))


def walk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T) V over the positions of maps: query, key (B, d, h, w), value (B, D, h, w), D a multiple of d ->
    (B, D, h, w) in value's dtype.

    torch's fused attention never holds the N x N matrix, but its CPU kernel wants values as wide as queries (they go in
    D/d slices, as heads that share queries and keys) and each position's numbers next to each other in memory
    (channels-last); else it falls back to one that does hold it, without a word. Computed in at least float32: the
    energies are not scaled, and bfloat16 would round one of 100 to the nearest half.
    """
    batch, depth, height, width = value.shape
    d, positions = query.shape[1], height * width
    heads = depth // d
    dtype = torch.promote_types(value.dtype, torch.float32)
    query, key, value = (m.contiguous(memory_format=torch.channels_last) for m in (query, key, value))
    with torch.autocast(value.device.type, enabled=False):
        query, key = (m.to(dtype).flatten(2).mT.unsqueeze(1).expand(batch, heads, positions, d) for m in (query, key))
        slices = value.to(dtype).reshape(batch, heads, d, positions).mT
        walked = F.scaled_dot_product_attention(query, key, slices, scale=1.0)
    return walked.mT.reshape(batch, depth, height, width).to(value.dtype)


def _resize(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(features, size, mode="bilinear", align_corners=True)
