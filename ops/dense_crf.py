"""Mean-field inference of the fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011)."""

import numpy as np
import torch

from ops.permutohedral import PermutohedralLattice

LEAST_PROBABILITY = 1e-5  # pydensecrf clips probabilities at the same value


def mean_field(
    probabilities: torch.Tensor,
    image: np.ndarray,
    iterations: int,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
) -> torch.Tensor:
    """Returns the marginals of the CRF with unary terms -log(probabilities), by mean field on permutohedral lattices.

    probabilities: (C, H, W) that sum to 1. image: (H, W, 3) uint8 RGB. gaussian_*: standard deviation (pixels) and weight of
    the smoothness term. bilateral_*: standard deviations (pixels; colours of 0-255) and weight of the appearance term. Each
    kernel is normalised symmetrically. Returns (C, H, W) float32 on the probabilities' device.
    """
    classes, height, width = probabilities.shape
    device = probabilities.device
    with torch.autocast(device.type, enabled=False):  # bfloat16 features would give another lattice
        unary = probabilities.float().clamp(LEAST_PROBABILITY, 1).log().view(classes, -1).T.contiguous()
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        position = torch.stack([x, y], dim=-1).view(-1, 2).float()
        colour = torch.from_numpy(np.ascontiguousarray(image)).to(device).view(-1, 3).float()
        appearance = torch.cat([position / bilateral_sxy, colour / bilateral_srgb], dim=1)
        kernels = []
        for weight, feature in ((gaussian_compat, position / gaussian_sxy), (bilateral_compat, appearance)):
            lattice = PermutohedralLattice(feature)
            norm = lattice.filter(feature.new_ones(len(feature), 1)).add_(1e-20).rsqrt_()
            kernels.append((weight, lattice, norm))
        marginals = unary.softmax(dim=1)
        for _ in range(iterations):
            logits = unary.clone()
            for weight, lattice, norm in kernels:  # Potts model: only a class's own filtered marginal supports it
                logits.addcmul_(lattice.filter(marginals * norm), norm, value=weight)
            marginals = logits.softmax(dim=1)
        return marginals.T.reshape(classes, height, width)
