"""Agreement of feature maps between an image and a view of it (URSS's variants of the consistency loss)."""

import torch
import torch.nn.functional as F


def feature_consistency(features: torch.Tensor, view_features: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of features at the same positions (URSS, Pan et al., ICCV 2021; `x` before the
    walk, `z` after it).

    features: (B, N, D), with gradient. view_features: (B, N, D), the view's, mapped back onto the same N positions;
    treated as constant. Returns a scalar >= 0.
    """
    return F.mse_loss(features, view_features.detach())
