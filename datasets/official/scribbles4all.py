"""Scribbles for All (Boettcher et al., NeurIPS 2024): scribbles drawn by a program for four data sets.

A scribble map has the label ids of its data set, in one channel or three equal ones (s4ScribbleGenerator/create_scribble.py in
https://github.com/wbkit/Scribbles4All). The .h5 beside a map holds its lines and is not read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.files import opened_label
from datasets.official.ade20k import ADE20K_TRAIN_IDS
from datasets.official.cityscapes import LABEL, TRAIN_IDS
from datasets.official.kitti360 import KITTI360_TRAIN_IDS, kitti360_name
from errors import UserError

PAGE = "https://github.com/wbkit/Scribbles4All"


@dataclass(frozen=True)
class Layout:
    """The files of one data set of Scribbles for All."""

    files: str
    """pattern of the scribble maps, anywhere below the folder"""
    name: Callable[[Path], str]
    """a scribble map -> its image's name in tools.prepare's layout"""
    ids: np.ndarray
    """id in the map -> class id, 255 = unlabelled; (256,) uint8"""


LAYOUTS = {
    "voc": Layout("*.png", lambda path: path.stem, np.arange(256, dtype=np.uint8)),
    "cityscapes": Layout(f"*{LABEL}", lambda path: path.name.removesuffix(LABEL), TRAIN_IDS),
    "kitti360": Layout("image_00/scribble/**/*.png", kitti360_name, KITTI360_TRAIN_IDS),
    "ade20k": Layout("ADE_train_*.png", lambda path: path.stem, ADE20K_TRAIN_IDS),
}


def scribble_files(folder: Path, data: str) -> dict[str, Path]:
    """Returns the scribble maps below `folder` by image name, sorted. `data`: a name in LAYOUTS. Raises UserError if there is
    none, or if two are of the same image."""
    files: dict[str, Path] = {}
    for path in sorted(folder.resolve().rglob(LAYOUTS[data].files)):
        name = LAYOUTS[data].name(path)
        if name in files:
            raise UserError(f"{path} and {files[name]} are scribbles of the same image; give the folder of one of them")
        files[name] = path
    if not files:
        raise UserError(f"{folder}: no {LAYOUTS[data].files} below it; download and unpack the scribbles from {PAGE}")
    return files


def read_scribbles(path: Path, data: str) -> np.ndarray:
    """Reads a scribble map as (H, W) uint8 class ids, 255 = unlabelled. `data`: a name in LAYOUTS. Raises UserError if the map
    is unreadable or in colours."""
    with opened_label(path) as image:
        channels = np.array(image).reshape(image.height, image.width, -1)
        if image.mode not in ("P", "L", "RGB") or (channels != channels[..., :1]).any():
            raise UserError(f"{path}: not the scribbles of Scribbles for All, which hold one id a pixel")
    return LAYOUTS[data].ids[channels[..., 0]]
