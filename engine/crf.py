"""The fully connected CRF that refines probabilities (Kraehenbuehl and Koltun, NIPS 2011), in torch or by pydensecrf."""

from importlib import metadata

import numpy as np
import torch

from config import CrfConfig
from engine.permutohedral import PermutohedralLattice
from errors import UserError

LEAST_PROBABILITY = 1e-5  # as pydensecrf clips them


def refine(probabilities: torch.Tensor, image: np.ndarray, library: str, parameters: CrfConfig) -> torch.Tensor:
    """Marginals of the CRF whose unary terms are -log of the probabilities.

    probabilities: (C, H, W) float32 that sum to 1. image: (H, W, 3) uint8 RGB. library: torch (on the probabilities' device) or
    pydensecrf, which agree to 1e-4 (but for what docs/evaluation.md tells). Returns (C, H, W) float32 on the same device.
    Raises UserError if pydensecrf is not installed.
    """
    by_library = {"torch": mean_field, "pydensecrf": _by_pydensecrf}[library]
    with torch.autocast(probabilities.device.type, enabled=False):  # in bfloat16 the lattice would be another
        return by_library(probabilities.float(), image, parameters)


def mean_field(probabilities: torch.Tensor, image: np.ndarray, parameters: CrfConfig) -> torch.Tensor:
    """`refine` by mean field on permutohedral lattices, each kernel normalised symmetrically (Kraehenbuehl and Koltun)."""
    classes, height, width = probabilities.shape
    device = probabilities.device
    unary = probabilities.clamp(LEAST_PROBABILITY, 1).log().view(classes, -1).T.contiguous()
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    position = torch.stack([x, y], dim=-1).view(-1, 2).float()
    colour = torch.from_numpy(np.ascontiguousarray(image)).to(device).view(-1, 3).float()
    features = (
        (parameters.gaussian_compat, position / parameters.gaussian_sxy),
        (
            parameters.bilateral_compat,
            torch.cat([position / parameters.bilateral_sxy, colour / parameters.bilateral_srgb], dim=1),
        ),
    )
    kernels = []
    for weight, feature in features:
        lattice = PermutohedralLattice(feature)
        norm = lattice.filter(feature.new_ones(len(feature), 1)).add_(1e-20).rsqrt_()
        kernels.append((weight, lattice, norm))
    marginals = unary.softmax(dim=1)
    for _ in range(parameters.iterations):
        logits = unary.clone()
        for weight, lattice, norm in kernels:  # Potts: what speaks for a class is its own filtered marginal
            logits.addcmul_(lattice.filter(marginals * norm), norm, value=weight)
        marginals = logits.softmax(dim=1)
    return marginals.T.reshape(classes, height, width)


def check_parameters(library: str, parameters: CrfConfig) -> None:
    """Raises UserError if parameters are given for no CRF."""
    if library == "none" and parameters != CrfConfig():
        raise UserError("--crf_parameters requires --crf torch or pydensecrf")


def library_version() -> str:
    """pydensecrf's version, whichever of its two packages has it."""
    names = metadata.packages_distributions().get("pydensecrf")
    return f"{names[0]} {metadata.version(names[0])}" if names else "of no installed package"


def _by_pydensecrf(probabilities: torch.Tensor, image: np.ndarray, parameters: CrfConfig) -> torch.Tensor:
    try:
        from pydensecrf import densecrf
        from pydensecrf.utils import unary_from_softmax
    except ImportError as error:
        raise UserError(
            "--crf pydensecrf: pydensecrf is not installed: pip install pydensecrf2==1.1 (needs a C++ compiler), or --crf torch"
        ) from error
    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities.cpu().numpy(), clip=LEAST_PROBABILITY)))
    crf.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=parameters.bilateral_sxy,
        srgb=parameters.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=parameters.bilateral_compat,
    )
    marginals = np.array(crf.inference(parameters.iterations), np.float32).reshape(classes, height, width)
    return torch.from_numpy(marginals).to(probabilities.device)
