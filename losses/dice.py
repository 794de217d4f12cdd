"""The Dice loss of probabilities against labels."""

import torch
import torch.nn.functional as F

from ops.pixelwise import sum_over_processes

SMOOTH = 1e-5


def dice_loss(probabilities: torch.Tensor, label: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean over the classes of 1 - (2 sum p t + s) / (sum p^2 + sum t^2 + s). The sums are over the counted pixels of all
    images and processes (soft Dice, Milletari et al., 3DV 2016; as in WSL4MIS).

    probabilities: (B, C, H, W). label: (B, H, W) int64 class ids. counted: (B, H, W) bool. Returns a scalar in [0, 1].
    """
    truth = F.one_hot(label, probabilities.shape[1]).movedim(-1, 1) * counted[:, None]
    probabilities = probabilities * counted[:, None]
    both, squares = (probabilities * truth).sum(dim=(0, 2, 3)), (probabilities**2 + truth).sum(dim=(0, 2, 3))
    both, squares = sum_over_processes(torch.stack([both, squares]))
    return (1 - (2 * both + SMOOTH) / (squares + SMOOTH)).mean()
