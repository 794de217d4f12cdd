"""What leaves the studio: a zip of masks, overlays, probabilities and the network."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.files import PALETTE, UNLABELLED
from engine.pictures import overlay
from studio.folder import StudioFolder
from studio.instant import Prediction


def zipped(folder: StudioFolder, predictions: dict[str, Prediction], checkpoint: Path | None, command: str) -> bytes:
    """Returns a zip: masks/ID.png (predictions, strokes laid over), overlays/ID.jpg, entropy/ID.png, scribbles/ID.png,
    classes.txt, README.txt with the command that goes on training, and the network's best.pt."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("classes.txt", "".join(f"{name}\n" for name in folder.classes))
        file.writestr(
            "README.txt", f"Train on this data set, on a larger machine too, from the project's folder:\n\n{command}\n"
        )
        for name in folder.labelled():
            file.write(folder.root / "scribbles" / f"{name}.png", f"scribbles/{name}.png")
        for name, prediction in predictions.items():
            for path, content in _files_of(folder, name, prediction):
                file.writestr(path, content)
        if checkpoint is not None:
            file.write(checkpoint, "best.pt", zipfile.ZIP_STORED)
            file.writestr("classes.json", json.dumps({"classes": folder.classes, "colours": folder.colours}))
    return data.getvalue()


def fitting(prediction: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns class ids (h, w) uint8, resized to `shape` (H, W) by nearest neighbour."""
    return cv2.resize(prediction, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _files_of(folder: StudioFolder, name: str, prediction: Prediction) -> Iterator[tuple[str, bytes]]:
    picture, label = folder.pictures[name], folder.label(name)
    mask = np.where(label == UNLABELLED, fitting(prediction.classes, picture.shape), label)
    coloured = Image.fromarray(mask)
    coloured.putpalette(PALETTE.reshape(-1).tolist())
    yield f"masks/{name}.png", _encoded(coloured, "PNG")
    yield f"overlays/{name}.jpg", _encoded(Image.fromarray(overlay(folder.image(name), mask)), "JPEG")
    yield f"entropy/{name}.png", _encoded(Image.fromarray(fitting(prediction.entropy, picture.shape)), "PNG")


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=92)
    return buffer.getvalue()
