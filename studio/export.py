"""What leaves the studio: a zip of masks, overlays, uncertainties, probabilities and the network."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.files import PALETTE, UNLABELLED, atomic_write
from engine.pictures import overlay
from engine.provenance import REPOSITORY
from errors import UserError
from studio.folder import StudioFolder
from studio.instant import Prediction
from studio.rounds import Rounds


def write_zip(
    file: Path, folder: StudioFolder, predict: Callable[[str], Prediction | None], rounds: Rounds, command: str
) -> None:
    """Writes a zip: masks/ID.png (predictions, strokes laid over), overlays/ID.jpg, entropy/ID.png, scribbles/ID.png,
    classes.txt and README.txt with a command that trains on the folder. After a training, also the network's best.pt and
    best.onnx, and probabilities/ID.npz (see `studio.network`). The write is atomic. Raises UserError if the ONNX export
    fails."""
    checkpoint = rounds.checkpoint()
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
            for made in (checkpoint, _onnx(checkpoint)):
                packed.write(made, made.name, zipfile.ZIP_STORED)
            for made in sorted(rounds.predictions.glob("*.npz")):
                packed.write(made, f"probabilities/{made.name}", zipfile.ZIP_STORED)


def _onnx(checkpoint: Path) -> Path:
    """Exports a checkpoint beside itself, if that was not done before."""
    file = checkpoint.with_suffix(".onnx")
    if not file.is_file():
        command = [sys.executable, "-m", "tools.export", str(checkpoint), "--out", str(file)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"the ONNX export failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return file


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
