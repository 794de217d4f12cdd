"""The gated CRF loss: neighbouring pixels of a similar colour should have the same class."""

import torch

RADIUS, XY, RGB = 5, 6.0, 0.1  # of the window and of the kernel, as in the authors' code


def gated_crf(logits: torch.Tensor, images: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """The energy of a CRF whose pairs lie within a window (Obukhov et al., Gated CRF Loss, 2019; Potts model, one kernel).

    Mean over the pixels i of the images of sum_j k_ij (1 - p_i . p_j), where j are the pixels of the images in a window of
    `RADIUS` around i, p are probabilities, and k_ij = exp(-|x_i - x_j|^2 / 2 XY^2 - |c_i - c_j|^2 / 2 RGB^2) for positions x in
    pixels and colours c.

    The authors sum over three colours; a grey image counts three times, so that sigma is 0.1 / sqrt(3) of its range.

    logits: (B, C, H, W) raw scores. images: (B, 3, H, W) colours from 0 to 1. outside: (B, H, W) bool, True at pixels that do
    not count. Returns a scalar, at least 0.
    """
    probabilities, inside = logits.softmax(dim=1), ~outside
    energy = logits.new_zeros(())
    for down in range(RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            if down == 0 and right <= 0:
                continue  # each pair once
            here, there = _shifted(images.shape[-2:], down, right)
            difference = (images[here] - images[there]).square().sum(dim=1)
            kernel = torch.exp(-(down**2 + right**2) / (2 * XY**2) - difference / (2 * RGB**2))
            kernel = kernel * (inside[here] & inside[there])
            unlike = 1 - (probabilities[here] * probabilities[there]).sum(dim=1)
            energy = energy + 2 * (kernel * unlike).sum()
    return energy / inside.sum().clamp(min=1)


def _shifted(size: torch.Size, down: int, right: int) -> tuple[tuple, tuple]:
    """Where the pixels of a map of `size` (H, W) are that have a neighbour `down` rows and `right` columns further, and where
    these neighbours are."""
    height, width = size
    here = (..., slice(0, height - down), slice(max(0, -right), width - max(0, right)))
    there = (..., slice(down, height), slice(max(0, right), width + min(0, right)))
    return here, there
