"""Predicts all pictures of a studio by a trained network; the studio runs this as a process of its own.

    python -m studio.network FOLDER --checkpoint FOLDER/studio/rounds/1/best.pt --classes '[0, 2]'

Writes FOLDER/studio/predictions/ID.npz: `classes`, `certainty` (the largest probability) and `entropy`, (H, W) uint8, and
`probabilities`, (C, H, W) uint8; 0 to 255 for 0 to 1. A picture that cannot be read is reported and left out.
"""

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt

from command_line import parse
from config import Device, InferenceConfig
from datasets.files import atomic_write, read_image
from engine import distributed
from engine.checkpoint import load_model
from engine.inference import predict_image
from engine.metrics import normalised_entropy
from errors import UserError, run
from studio.features import LONG_SIDE
from studio.instant import in_bytes
from studio.pictures import files_in


@dataclass
class NetworkConfig:
    """Pictures to predict."""

    folder: str
    """folder of a studio"""
    _: KW_ONLY
    checkpoint: str
    """checkpoint of a training"""
    classes: tuple[NonNegativeInt, ...]
    """ids of the classes that may be predicted: those with strokes"""
    device: Device = "auto"
    """device; auto: CUDA if there is a GPU, else the CPU"""


def main() -> None:
    """Runs the command line above."""
    config = parse(NetworkConfig, __doc__, positional=True)
    method = load_model(config.checkpoint)
    device = distributed.pick_device(config.device)
    distributed.move_to_device(method, device)
    precision = distributed.pick_precision(device, "auto")
    out = Path(config.folder) / "studio" / "predictions"
    allowed = np.isin(np.arange(len(method.classes)), config.classes)
    for path in files_in(Path(config.folder)):
        try:
            image = read_image(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        settings = InferenceConfig(long_side=min(LONG_SIDE, max(image.shape[:2])))
        with torch.inference_mode(), distributed.autocast(device, precision):
            probabilities = predict_image(method, image, settings, device, allowed).cpu()
        with atomic_write(out / f"{path.stem}.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                classes=probabilities.argmax(dim=0).byte().numpy(),
                certainty=in_bytes(probabilities.amax(dim=0)),
                entropy=in_bytes(normalised_entropy(probabilities[torch.from_numpy(allowed)])),
                probabilities=in_bytes(probabilities),
            )


if __name__ == "__main__":
    run(main)
