"""The dense CRF that refines probabilities, by pydensecrf."""

import numpy as np

from errors import UserError

ITERATIONS = 10


def refine(probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Marginals of the fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011) with CC4S's parameters: 10 iterations;
    Gaussian sxy 3, compat 3; bilateral sxy 80, srgb 13, compat 10.

    probabilities: (C, H, W) float32 that sum to 1. image: (H, W, 3) uint8 RGB. Returns (C, H, W) float32.
    Raises UserError where pydensecrf is not installed.
    """
    try:
        from pydensecrf import densecrf
        from pydensecrf.utils import unary_from_softmax
    except ImportError as error:
        raise UserError(
            "--crf pydensecrf: pydensecrf is not installed: pip install pydensecrf2==1.1 (needs a C++ compiler)"
        ) from error
    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(crf.inference(ITERATIONS), np.float32).reshape(classes, height, width)
