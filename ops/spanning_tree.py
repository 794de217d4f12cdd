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
    levels: list[torch.Tensor]
    """the nodes at each depth, roots first: int64"""


def spanning_trees(maps: torch.Tensor) -> Trees:
    """The minimum spanning tree of each map (B, D, h, w): neighbours in rows and columns are joined, at the squared distance of
    their values. Computed on the CPU, without gradient."""
    values = maps.detach().double().cpu().numpy()
    height, width = values.shape[-2:]
    nodes = np.arange(height * width).reshape(height, width)
    first = np.concatenate([nodes[:, :-1].ravel(), nodes[:-1].ravel()])
    second = np.concatenate([nodes[:, 1:].ravel(), nodes[1:].ravel()])
    parents, depths = [], []
    for number, value in enumerate(values):
        flat = value.reshape(len(value), -1)
        distances = ((flat[:, first] - flat[:, second]) ** 2).sum(axis=0) + LEAST
        graph = coo_matrix((distances, (first, second)), shape=(nodes.size, nodes.size)).tocsr()
        order, before = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
        before[0] = 0
        depth = np.zeros(nodes.size, np.int64)
        for node in order[1:]:  # parents come first
            depth[node] = depth[before[node]] + 1
        parents.append(before.astype(np.int64) + number * nodes.size)
        depths.append(depth)
    parent, depth_of = (torch.from_numpy(np.concatenate(parts)) for parts in (parents, depths))
    levels = depth_of.argsort(stable=True).to(maps.device).split(depth_of.bincount().tolist())
    return Trees(parent.to(maps.device), list(levels))


def tree_filter(values: torch.Tensor, trees: Trees, maps: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """The mean of the values (B, C, h, w) over all positions of the tree: (B, C, h, w), without gradient.

    The weight of position j at position i is exp(-d / sigma), where d is the sum of the squared distances of `maps`, (B, D, h,
    w), along the path between them (Song et al., Learnable Tree Filter, NeurIPS 2019). Two passes over the tree, from the
    leaves and from the root.
    """
    with torch.no_grad():
        flat = maps.flatten(2).mT.flatten(0, 1)  # (B N, D)
        step = torch.exp(-(flat - flat[trees.parent]).square().sum(dim=1, keepdim=True) / sigma)
        given = torch.cat([values.flatten(2).mT.flatten(0, 1), step.new_ones(len(step), 1)], dim=1)
        gathered = given.clone()
        for level in reversed(trees.levels[1:]):
            gathered.index_add_(0, trees.parent[level], step[level] * gathered[level])
        total = gathered.clone()
        for level in trees.levels[1:]:
            total[level] = step[level] * total[trees.parent[level]] + (1 - step[level] ** 2) * gathered[level]
        mean = total[:, :-1] / total[:, -1:]
        return mean.unflatten(0, (len(values), -1)).mT.unflatten(2, tuple(values.shape[-2:]))
