"""What leaves the studio: a zip of masks, overlays, uncertainties and the network."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.files import PALETTE, UNLABELLED, atomic_write
from engine.pictures import overlay
from studio.folder import StudioFolder
from studio.instant import Prediction


def write_zip(
    file: Path, folder: StudioFolder, predict: Callable[[str], Prediction | None], checkpoint: Path | None, command: str
) -> None:
    """Writes a zip: masks/ID.png (predictions, strokes laid over), overlays/ID.jpg, entropy/ID.png, scribbles/ID.png,
    classes.txt, README.txt with the command that goes on training, and the network's best.pt. The write is atomic."""
    with atomic_write(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("classes.txt", "".join(f"{name}\n" for name in folder.classes))
        packed.writestr("README.txt", f"Train on this data set, from the project's folder:\n\n{command}\n")
        for name in folder.labelled():
            packed.write(folder.root / "scribbles" / f"{name}.png", f"scribbles/{name}.png")
        for name in list(folder.pictures):
            prediction = predict(name)
            for path, content in _files_of(folder, name, prediction) if prediction else ():
                packed.writestr(path, content)
        if checkpoint is not None:
            packed.write(checkpoint, "best.pt", zipfile.ZIP_STORED)


def fitting(prediction: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns class ids (h, w) uint8, resized to `shape` (H, W) by nearest neighbour."""
    return cv2.resize(prediction, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _files_of(folder: StudioFolder, name: str, prediction: Prediction) -> Iterator[tuple[str, bytes]]:
    picture, label = folder.pictures[name], folder.label(name)
    mask = np.where(label == UNLABELLED, fitting(prediction.classes, picture.shape), label)
    coloured = Image.fromarray(mask)
    coloured.putpalette(PALETTE.reshape(-1).tolist())
    yield f"masks/{name}.png", encoded(coloured, "PNG")
    yield f"overlays/{name}.jpg", encoded(Image.fromarray(overlay(folder.image(name), mask)), "JPEG")
    yield f"entropy/{name}.png", encoded(Image.fromarray(fitting(prediction.entropy, picture.shape)), "PNG")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Returns a picture as the bytes of a file, kind: PNG or JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=92)
    return buffer.getvalue()
