"""Gaussian filtering of points in a few dimensions on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010)."""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F


class PermutohedralLattice:
    """The filter out_i = sum_j exp(-|f_i - f_j|^2 / 2) in_j for fixed features f, approximated on the lattice.

    Simplices tile the space. A value is splatted onto the d + 1 vertices of its point's simplex with barycentric weights. The
    vertices are blurred along each of the d + 1 axes by (1/2, 1, 1/2). The result is sliced back with the same weights. Only
    vertices of simplices that hold a point exist. All channels are filtered at once.
    """

    def __init__(self, features: torch.Tensor):
        """features: (N, d) float32, in units of the Gaussian's standard deviation. The filter runs on the features' device."""
        count, dims = features.shape
        vertices, weights = _simplices(features)  # (N (d + 1), d), (N (d + 1),)
        codes, order = _codes(vertices, vertices).sort()
        codes, index, uses = torch.unique_consecutive(codes, return_inverse=True, return_counts=True)
        starts = F.pad(uses.cumsum(0), (1, 0))
        used = vertices[order[starts[:-1]]]
        self.neighbours = _neighbours(used, codes)
        # Splatting multiplies by a sparse matrix of N (d + 1) weights. Slicing multiplies by the transpose.
        self.splat = _sparse(starts, order // (dims + 1), weights[order], (len(used), count))
        columns = torch.empty_like(index).scatter_(0, order, index)
        rows = torch.arange(0, count * (dims + 1) + 1, dims + 1, device=features.device)
        # Steps along all d + 1 axes lead back to the start, so blurring makes a value 1 + 2^-d times too large.
        self.slice = _sparse(rows, columns, weights / (1 + 2.0**-dims), (count, len(used)))

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C) float32 -> (N, C) float32."""
        nodes = self.splat @ values
        nodes = torch.cat([nodes, nodes.new_zeros(1, nodes.shape[1])])  # the last row is for vertices that do not exist
        for left, right in self.neighbours:
            blurred = nodes[left]
            blurred += nodes[right]
            nodes[:-1].add_(blurred, alpha=0.5)
        return self.slice @ nodes[:-1]


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first d coordinates of the vertices of each point's simplex, (N (d + 1), d) int64, and the point's
    barycentric weights, (N (d + 1),) float32. A vertex has d + 1 integer coordinates that sum to 0."""
    count, dims = features.shape
    # Basis of the hyperplane, scaled so that the blur has variance 1 in the units of the features.
    deviation = float(np.float32(math.sqrt(2 / 3) * (dims + 1)))  # rounded to float32, as densecrf does
    scale = features.new_tensor([deviation / math.sqrt((axis + 1) * (axis + 2)) for axis in range(dims)])
    scaled = features * scale
    # One dimension after another, each sum rounded to float32, as densecrf does. So a point on the border of two simplices
    # falls into the same simplex as in densecrf, and the same vertices exist.
    elevated = features.new_empty(count, dims + 1)
    tail = torch.zeros_like(scaled[:, 0])
    for dim in range(dims, 0, -1):
        elevated[:, dim] = tail - dim * scaled[:, dim - 1]
        tail = tail + scaled[:, dim - 1]
    elevated[:, 0] = tail

    # The nearest point of remainder 0. If its coordinates do not sum to 0, `wrap` moves it to a neighbour.
    nearest = (elevated * (1 / (dims + 1))).round()
    excess = nearest.sum(dim=1, keepdim=True).long()
    nearest *= dims + 1
    offset = elevated - nearest
    # Rank 0 is the largest offset. Among equal offsets, the earlier coordinate comes first.
    rank = offset.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    wrap = (dims + 1) * ((rank < 0).long() - (rank > dims).long())
    rank += wrap
    nearest += wrap

    # Barycentric weights are differences of the offsets, sorted by rank.
    ordered = torch.empty_like(elevated).scatter_(1, rank, (elevated - nearest) / (dims + 1))
    weights = torch.empty_like(elevated)
    weights[:, 1:] = (ordered[:, :-1] - ordered[:, 1:]).flip(1)
    weights[:, 0] = ordered[:, -1] + (1 - ordered[:, 0])

    # Vertex r adds r to the coordinates of rank at most d - r, and r - (d + 1) to the other coordinates.
    remainder = torch.arange(dims + 1, device=features.device)[:, None]
    step = remainder - (dims + 1) * (rank[:, None, :dims] > dims - remainder)
    vertices = nearest[:, None, :dims].long() + step
    return vertices.view(-1, dims), weights.view(-1)


def _codes(rows: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """Returns an int64 code for each row (K, d) int64. Codes are distinct in the box around `space` and its neighbours."""
    dims = rows.shape[1]
    low, high = space.amin(dim=0) - dims, space.amax(dim=0) + dims
    codes = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for dim in range(dims):
        codes = codes * (high[dim] - low[dim] + 1) + (rows[:, dim] - low[dim])
    return codes


def _neighbours(used: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Returns both neighbours of every vertex along each of the d + 1 axes: (d + 1, 2, M) int64 rows of `used`, M = none.

    used: (M, d) int64, sorted by `codes` (M,).
    """
    count, dims = used.shape
    found = torch.full((dims + 1, 2, count), count, dtype=torch.long, device=used.device)
    for axis in range(dims + 1):
        step = torch.ones(dims, dtype=torch.long, device=used.device)
        if axis < dims:
            step[axis] = -dims
        for side, moved in enumerate((used - step, used + step)):
            wanted = _codes(moved, used)
            place = torch.searchsorted(codes, wanted).clamp_(max=count - 1)
            found[axis, side] = torch.where(codes[place] == wanted, place, count)
    return found


def _sparse(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
