"""Filtering along minimum spanning trees of maps: positions that a path of small steps joins share their values."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

LEAST = 1e-12  # added to distances: scipy takes a distance of 0 for no edge


class Trees(NamedTuple):
    """The spanning trees of B maps with N positions each, as one forest of B N nodes."""

    parent: torch.Tensor
    """(B N,) int64: the parent of each node; a root is its own parent"""
    distance: torch.Tensor
    """(B N,) float32: the squared distance of the values of node and parent; 0 for a root"""
    levels: list[torch.Tensor]
    """the nodes at each depth, roots first: int64"""


def spanning_trees(maps: torch.Tensor) -> Trees:
    """The minimum spanning tree of each map (B, D, h, w): neighbours in rows and columns are joined, at the squared distance of
    their values. Without gradient. The trees are computed on the CPU: on a GPU, the host waits for the distances."""
    maps = maps.detach()
    height, width = maps.shape[-2:]
    right = (maps[..., 1:] - maps[..., :-1]).square().sum(dim=1)
    below = (maps[..., 1:, :] - maps[..., :-1, :]).square().sum(dim=1)
    distances = torch.cat([right.flatten(1), below.flatten(1)], dim=1).double().cpu().numpy()
    nodes = np.arange(height * width).reshape(height, width)
    first = np.concatenate([nodes[:, :-1].ravel(), nodes[:-1].ravel()])
    second = np.concatenate([nodes[:, 1:].ravel(), nodes[1:].ravel()])
    parents, depths, steps = [], [], []
    for number, of_edges in enumerate(distances):
        graph = coo_matrix((of_edges + LEAST, (first, second)), shape=(nodes.size, nodes.size)).tocsr()
        tree = minimum_spanning_tree(graph)
        order, before = breadth_first_order(tree, 0, directed=False)
        before[0] = 0
        depth = np.zeros(nodes.size, np.int64)
        for node in order[1:]:  # parents come first
            depth[node] = depth[before[node]] + 1
        step = np.asarray((tree + tree.T)[nodes.ravel(), before]).ravel()
        step[0] = 0
        parents.append(before.astype(np.int64) + number * nodes.size)
        depths.append(depth)
        steps.append(step)
    parent, depth_of, distance = (torch.from_numpy(np.concatenate(parts)) for parts in (parents, depths, steps))
    levels = depth_of.argsort(stable=True).to(maps.device).split(depth_of.bincount().tolist())
    return Trees(parent.to(maps.device), distance.float().to(maps.device), list(levels))


def tree_filter(values: torch.Tensor, trees: Trees, counted: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """The mean of the values (B, C, h, w) over the counted positions of the tree: (B, C, h, w), without gradient.

    The weight of position j at position i is exp(-d / sigma), where d is the sum of the squared distances along the path
    between them (Song et al., Learnable Tree Filter, NeurIPS 2019). counted: (B, h, w) bool. Where all weights are 0, the value
    stays. Two passes over the tree, from the leaves and from the root.
    """
    with torch.no_grad():
        step = torch.exp(-trees.distance[:, None].to(values.dtype) / sigma)
        flat, weight = values.flatten(2).mT.flatten(0, 1), counted.flatten()[:, None].to(values.dtype)
        gathered = torch.cat([flat * weight, weight], dim=1)
        for level in reversed(trees.levels[1:]):
            gathered.index_add_(0, trees.parent[level], step[level] * gathered[level])
        total = gathered.clone()
        for level in trees.levels[1:]:
            total[level] = step[level] * total[trees.parent[level]] + (1 - step[level] ** 2) * gathered[level]
        mean = torch.where(total[:, -1:] > 0, total[:, :-1] / total[:, -1:].clamp(min=1e-30), flat)
        return mean.unflatten(0, (len(values), -1)).mT.unflatten(2, tuple(values.shape[-2:]))
