"""Blocks of the N x N matrix of all pairs of positions."""

from collections.abc import Iterator

import torch

# Entries of a block. A block should fit the cache of a CPU. A GPU needs larger blocks to be busy, but the network's activations
# need memory at the same time (estimated for an H200, not measured on a GPU).
HELD = {"cpu": 2**20, "cuda": 2**25}


def blocks(positions: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the blocks of the matrices (B, N, N) of `positions` (B, N, d): a slice of the images and a slice of their rows.

    A block has at most `HELD` entries or a single row, so memory is linear in N. A block holds whole images if they fit, else a
    part of one image. So sums over blocks cover as few images as possible and stay in a CPU's cache.
    """
    batch, count, _ = positions.shape
    held = HELD[positions.device.type]
    images = max(1, min(batch, held // count**2))
    rows = max(1, min(count, held // (images * count)))
    for first in range(0, batch, images):
        for start in range(0, count, rows):
            yield slice(first, min(first + images, batch)), slice(start, min(start + rows, count))
