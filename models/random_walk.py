"""The random walk on the feature map."""

import torch
from torch import nn

from ops.resizing import resize
from ops.walk import walk


class RandomWalk(nn.Module):
    """One step of a random walk over the N positions of a feature map (CC4S, random-walk module): gamma * P V + x.

    Energy E = Q K^T, transition P = softmax(E) over the keys, gamma learned from 0. With `shrink` > 1 the walk runs on the map
    resampled to (n - 1) // shrink + 1 positions a side, and P V is resampled back before it is added. `scaled` divides the
    energies by sqrt(d), d being the width of the queries, as attention does (Vaswani et al., NIPS 2017).
    """

    def __init__(self, width: int, shrink: int = 1, scaled: bool = False):
        super().__init__()
        self.shrink = shrink
        self.scale = (width // 8) ** -0.5 if scaled else 1.0
        self.query_conv = nn.Conv2d(width, width // 8, 1)
        self.key_conv = nn.Conv2d(width, width // 8, 1)
        self.value_conv = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """features (B, D, h, w) -> the features after the walk, with the same shape; the queries and keys of `query_key`."""
        query, key = self.query_key(features)
        walked = walk(query, key, self.value_conv(self._shrunk(features)))
        if self.shrink > 1:
            walked = resize(walked, features.shape[-2:], align_corners=True)
        return self.gamma * walked + features, query, key

    def query_key(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the energy: features (B, D, h, w) -> queries and keys, each (B, D/8, h', w') at the shrunken size."""
        small = self._shrunk(features)
        query = self.query_conv(small)
        return (query if self.scale == 1 else query * self.scale), self.key_conv(small)

    def _shrunk(self, features: torch.Tensor) -> torch.Tensor:
        if self.shrink == 1:
            return features
        size = [(side - 1) // self.shrink + 1 for side in features.shape[-2:]]
        return resize(features, size, align_corners=True)
