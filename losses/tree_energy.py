"""The tree energy loss: unlabelled positions learn the mean prediction along spanning trees of colours and of features."""

import torch
import torch.nn.functional as F

from ops.pixelwise import sum_over_processes
from ops.resizing import at_positions, resize
from ops.spanning_tree import spanning_trees, tree_filter

SIGMA = 0.02  # of the colours, as in the authors' code


def tree_energy(
    logits: torch.Tensor, images: torch.Tensor, features: torch.Tensor, unlabelled: torch.Tensor, outside: torch.Tensor
) -> torch.Tensor:
    """Mean |p - t| over the unlabelled positions of the features' grid, of all processes (TEL; Liang et al., CVPR 2022): p are
    the probabilities, and the target t is p filtered along the tree of the images, then along the tree of the features.

    Differences from the authors' code: the target has no gradient; positions outside the image take no part; and the features
    are the encoder's, at unit length, where theirs are a learned embedding.

    logits: (B, C, h', w') raw scores. images: (B, 3, H, W) normalised. features: (B, D, h, w). unlabelled, outside: (B, H, W)
    bool. Returns a scalar in [0, 2], 0 if no position is unlabelled.
    """
    grid = features.shape[-2:]
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        probabilities = (logits if logits.shape[-2:] == grid else resize(logits, grid, align_corners=True)).softmax(dim=1)
        inside = ~at_positions(outside, grid)
        colours = resize(images.detach().float(), grid, align_corners=True)
        target = tree_filter(probabilities, spanning_trees(colours), inside, SIGMA)
        target = tree_filter(target, spanning_trees(F.normalize(features.float(), dim=1)), inside)
        counted = at_positions(unlabelled, grid) & inside
        total = ((probabilities - target).abs().sum(dim=1) * counted).sum()
        total, count = sum_over_processes(torch.stack([total, counted.sum().to(total.dtype)]))
        return total / count.clamp(min=1)
