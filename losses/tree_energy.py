"""The tree energy loss: unlabelled positions learn the mean prediction along spanning trees of colours and of features."""

import torch
import torch.nn.functional as F

from ops.resizing import resize
from ops.spanning_tree import spanning_trees, tree_filter

SIGMA = 0.02  # of the colours, as in the authors' code


def tree_energy(logits: torch.Tensor, images: torch.Tensor, features: torch.Tensor, unlabelled: torch.Tensor) -> torch.Tensor:
    """Mean |p - t| over the unlabelled positions (TEL; Liang et al., CVPR 2022): p are the probabilities, and the target t is p
    filtered along the tree of the images, then along the tree of the features. Differences from the authors' code: the target
    has no gradient, and the features are the encoder's, at unit length, where theirs are a learned embedding.

    logits: (B, C, h, w) raw scores at the stride of the network. images: (B, 3, H, W) normalised. features: (B, D, h', w').
    unlabelled: (B, H, W) bool. Returns a scalar in [0, 2], 0 if no position is unlabelled.
    """
    grid = logits.shape[-2:]
    with torch.autocast(logits.device.type, enabled=False):
        probabilities = logits.float().softmax(dim=1)
        colours, features = (resize(maps.detach().float(), grid, align_corners=True) for maps in (images, features))
        features = F.normalize(features, dim=1)
        target = tree_filter(probabilities, spanning_trees(colours), colours, SIGMA)
        target = tree_filter(target, spanning_trees(features), features)
        counted = F.interpolate(unlabelled[:, None].float(), grid, mode="nearest")[:, 0]
        difference = (probabilities - target).abs().sum(dim=1)
        return (difference * counted).sum() / counted.sum().clamp(min=1)
