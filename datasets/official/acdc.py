"""ACDC (Bernard et al., IEEE TMI 2018): cardiac MR slices with the scribbles of Valvano et al. (IEEE TMI 2021), as packed by
WSL4MIS: one .h5 file per slice, with `image`, `label` and `scribble`."""

import re
from pathlib import Path

import numpy as np

from datasets.files import UNLABELLED
from datasets.official.source import Source, require
from errors import UserError, extra

ACDC_CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")

PAGE = "https://github.com/HiLab-git/WSL4MIS/tree/main/data/ACDC"
NOT_SCRIBBLED = len(ACDC_CLASSES)  # WSL4MIS's id of unlabelled pixels
VAL_EVERY = 5


def read_acdc(root: Path) -> Source:
    """Reads the slices ROOT/ACDC_training_slices/patientNNN_frameNN_slice_N.h5 (or ROOT/patient*.h5). Every fifth patient, in
    order of their numbers, is in val. Raises UserError for missing files."""
    folder = root / "ACDC_training_slices"
    folder = require(folder if folder.is_dir() else root, "the slices", PAGE)
    files = {path.stem: path for path in sorted(folder.glob("patient*.h5"))}
    patients = sorted({_patient(path) for path in files.values()})
    if not patients:
        raise UserError(f"{folder}: no patientNNN_*.h5 in it; download the slices from {PAGE}")
    val = set(patients[VAL_EVERY - 1 :: VAL_EVERY])
    splits = {
        "train": [name for name, path in files.items() if _patient(path) not in val],
        "val": [name for name, path in files.items() if _patient(path) in val],
    }
    keys = {"JPEGImages": "image", "SegmentationClass": "label", "scribbles": "scribble"}
    maps = {folder: {name: (path, key) for name, path in files.items()} for folder, key in keys.items()}
    return Source(ACDC_CLASSES, splits, {}, maps, read_slice)


def read_slice(entry: tuple[Path, str]) -> np.ndarray:
    """File and key -> (H, W) uint8: the image scaled to 0..255, the label, or the scribbles with 255 = unlabelled. Raises
    UserError if the array is unreadable."""
    path, key = entry
    h5py = extra("h5py")
    try:
        with h5py.File(path, "r") as file:
            array = np.asarray(file[key])
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: no readable slice with a {key} ({error})") from error
    if array.ndim != 2 or not array.size:
        raise UserError(f"{path}: the {key} has {array.ndim} dimensions, but two are expected")
    if key == "image":
        array = array.astype(np.float64)
        low, high = array.min(), array.max()
        return (255 * (array - low) / max(high - low, 1e-9)).round().astype(np.uint8)
    if not np.isin(array, range(NOT_SCRIBBLED + 1)).all():
        raise UserError(f"{path}: the {key} holds ids outside 0 to {NOT_SCRIBBLED}")
    return np.where(array == NOT_SCRIBBLED, UNLABELLED, array).astype(np.uint8)


def _patient(path: Path) -> int:
    match = re.match(r"patient(\d+)_", path.name)
    if not match:
        raise UserError(f"{path}: the file name must begin with patientNNN_")
    return int(match[1])
