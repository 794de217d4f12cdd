"""Agreement of the feature maps of an image and of its view (URSS's variants of the consistency loss)."""

import torch
import torch.nn.functional as F


def feature_consistency(features: torch.Tensor, view_features: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of features at the same positions (URSS, Pan et al., ICCV 2021). URSS compares the features
    before the walk (`x`) or after the walk (`z`).

    features: (B, N, D) of the image, with gradient. view_features: (B, N, D) of the view, mapped back onto the same N positions
    and treated as constant. Returns a scalar >= 0.
    """
    return F.mse_loss(features, view_features.detach())
