"""The fully connected CRF that refines probabilities (Kraehenbuehl and Koltun, NIPS 2011), in torch or by pydensecrf."""

from dataclasses import asdict
from importlib import metadata

import numpy as np
import torch

from command_line import read_preset
from config import CrfConfig
from errors import UserError, extra
from ops.dense_crf import LEAST_PROBABILITY, mean_field


def refine(probabilities: torch.Tensor, image: np.ndarray, library: str, parameters: CrfConfig) -> torch.Tensor:
    """Returns the marginals of the CRF with unary terms -log(probabilities).

    probabilities: (C, H, W) float32 that sum to 1. image: (H, W, 3) uint8 RGB. library: torch (on the probabilities' device) or
    pydensecrf. Both agree to 1e-4; docs/evaluation.md has the exception. Returns (C, H, W) float32 on the same device.
    Raises UserError if pydensecrf is not installed.
    """
    if library == "pydensecrf":
        return _by_pydensecrf(probabilities.float(), image, parameters)
    return mean_field(probabilities, image, **asdict(parameters))


def check_parameters(library: str, parameters: CrfConfig, preset: str) -> None:
    """Raises UserError if parameters, other than those of the preset, are given without a CRF."""
    if library == "none" and parameters != CrfConfig(**read_preset(preset).get("crf_parameters", {})):
        raise UserError("--crf_parameters requires --crf torch or --crf pydensecrf")


def library_version() -> str:
    """Returns the package and the version of pydensecrf. Two packages provide it."""
    names = metadata.packages_distributions().get("pydensecrf")
    return f"{names[0]} {metadata.version(names[0])}" if names else "of no installed package"


def _by_pydensecrf(probabilities: torch.Tensor, image: np.ndarray, parameters: CrfConfig) -> torch.Tensor:
    densecrf, utils = extra("pydensecrf.densecrf"), extra("pydensecrf.utils")
    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(probabilities.cpu().numpy(), clip=LEAST_PROBABILITY)))
    crf.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=parameters.bilateral_sxy,
        srgb=parameters.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=parameters.bilateral_compat,
    )
    marginals = np.array(crf.inference(parameters.iterations), np.float32).reshape(classes, height, width)
    return torch.from_numpy(marginals).to(probabilities.device)
