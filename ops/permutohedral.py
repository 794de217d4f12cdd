"""Gaussian filtering of points in a few dimensions on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010)."""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F


class PermutohedralLattice:
    """The filter out_i = sum_j exp(-|f_i - f_j|^2 / 2) in_j, to the lattice's approximation, for fixed features f.

    Space is tiled by simplices; a value is splatted onto the d + 1 vertices of its point's simplex with barycentric weights,
    the vertices are blurred along each of the d + 1 axes by (1/2, 1, 1/2), and sliced back with the same weights. Only
    vertices that some point touches exist. All channels go through at once.
    """

    def __init__(self, features: torch.Tensor):
        """features: (N, d) float32, in units of the Gaussian's standard deviation; the filter runs on its device."""
        count, dims = features.shape
        vertices, weights = _simplices(features)  # (N (d + 1), d), (N (d + 1),)
        codes, order = _codes(vertices, vertices).sort()
        codes, index, uses = torch.unique_consecutive(codes, return_inverse=True, return_counts=True)
        starts = F.pad(uses.cumsum(0), (1, 0))
        used = vertices[order[starts[:-1]]]
        self.neighbours = _neighbours(used, codes)
        # Splatting is a sparse matrix of N (d + 1) weights, slicing its transpose.
        self.splat = _sparse(starts, order // (dims + 1), weights[order], (len(used), count))
        columns = torch.empty_like(index).scatter_(0, order, index)
        rows = torch.arange(0, count * (dims + 1) + 1, dims + 1, device=features.device)
        # Without blurring each value would come back 1 + 2^-d times too large.
        self.slice = _sparse(rows, columns, weights / (1 + 2.0**-dims), (count, len(used)))

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C) float32 -> (N, C) float32."""
        nodes = self.splat @ values
        nodes = torch.cat([nodes, nodes.new_zeros(1, nodes.shape[1])])  # the last row stands for vertices that do not exist
        for left, right in self.neighbours:
            blurred = nodes[left]
            blurred += nodes[right]
            nodes[:-1].add_(blurred, alpha=0.5)
        return self.slice @ nodes[:-1]


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The vertices of each point's enclosing simplex, by their first d coordinates (N (d + 1), d) int64, and the point's
    barycentric weights for them (N (d + 1),) float32. Vertices have d + 1 integer coordinates that sum to 0."""
    count, dims = features.shape
    # The hyperplane's basis, scaled so that the blur's variance is one unit of the features.
    deviation = float(np.float32(math.sqrt(2 / 3) * (dims + 1)))  # rounded on the way, as densecrf does
    scale = features.new_tensor([deviation / math.sqrt((axis + 1) * (axis + 2)) for axis in range(dims)])
    scaled = features * scale
    # One dimension after the other, each sum rounded to float32 as densecrf does: a point on the border of two simplices falls
    # to the same side, and so the same vertices exist.
    elevated = features.new_empty(count, dims + 1)
    tail = torch.zeros_like(scaled[:, 0])
    for dim in range(dims, 0, -1):
        elevated[:, dim] = tail - dim * scaled[:, dim - 1]
        tail = tail + scaled[:, dim - 1]
    elevated[:, 0] = tail

    # The nearest vertex of remainder 0, then, where its coordinates do not sum to 0, a neighbour of it.
    nearest = (elevated * (1 / (dims + 1))).round()
    excess = nearest.sum(dim=1, keepdim=True).long()
    nearest *= dims + 1
    offset = elevated - nearest
    # Rank 0 has the largest offset; of equal ones the earlier coordinate.
    rank = offset.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    wrap = (dims + 1) * ((rank < 0).long() - (rank > dims).long())
    rank += wrap
    nearest += wrap

    # Barycentric weights are differences of the offsets in order of rank.
    ordered = torch.empty_like(elevated).scatter_(1, rank, (elevated - nearest) / (dims + 1))
    weights = torch.empty_like(elevated)
    weights[:, 1:] = (ordered[:, :-1] - ordered[:, 1:]).flip(1)
    weights[:, 0] = ordered[:, -1] + (1 - ordered[:, 0])

    # Vertex r adds r to the coordinates of rank at most d - r, and r - (d + 1) to the others.
    remainder = torch.arange(dims + 1, device=features.device)[:, None]
    step = remainder - (dims + 1) * (rank[:, None, :dims] > dims - remainder)
    vertices = nearest[:, None, :dims].long() + step
    return vertices.view(-1, dims), weights.view(-1)


def _codes(rows: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """One int64 for each of the rows (K, d) int64, distinct within the box around `space` and its neighbours."""
    dims = rows.shape[1]
    low, high = space.amin(dim=0) - dims, space.amax(dim=0) + dims
    codes = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for dim in range(dims):
        codes = codes * (high[dim] - low[dim] + 1) + (rows[:, dim] - low[dim])
    return codes


def _neighbours(used: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """For each of the d + 1 axes, both neighbours of every vertex: (d + 1, 2, M) int64 rows of `used`, M where there is none.

    used: (M, d) int64, in order of their `codes` (M,).
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
