"""The N x N matrix of all pairs of positions, a block at a time."""

from collections.abc import Iterator

import torch

# Entries held at a time. On a CPU they should stay in its cache; a GPU wants enough of them to be busy, and no more, since all
# of the network's activations are held beside them (reckoned for an H200; no GPU has been at hand to measure it).
HELD = {"cpu": 2**20, "cuda": 2**25}


def blocks(positions: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Which images and which of their rows to take together, of the matrices (B, N, N) of `positions` (B, N, d).

    A block has at most `HELD` entries, so memory is linear in N. It is of whole images where some fit, else of a part of one:
    the sums over blocks are then of as few images as can be, and stay in a CPU's cache.
    """
    batch, count, _ = positions.shape
    held = HELD[positions.device.type]
    images = max(1, min(batch, held // count**2))
    rows = max(1, min(count, held // (images * count)))
    for first in range(0, batch, images):
        for start in range(0, count, rows):
            yield slice(first, min(first + images, batch)), slice(start, min(start + rows, count))
