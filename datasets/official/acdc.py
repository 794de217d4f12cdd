"""ACDC (Bernard et al., IEEE TMI 2018): cardiac MR with the scribbles of Valvano et al. (IEEE TMI 2021), from the .h5 slices of
WSL4MIS, or from NIfTI volumes."""

import re
import sys
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import UNLABELLED
from datasets.official.source import Source, require
from errors import UserError, extra

ACDC_CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")

PAGE = "https://github.com/HiLab-git/WSL4MIS/tree/main/data/ACDC"
NOT_SCRIBBLED = len(ACDC_CLASSES)  # WSL4MIS's id of unlabelled pixels
VAL_EVERY = 5
BRIGHTEST = 99.0  # percentile of a volume that becomes 255, as in WSL4MIS
KINDS = {"JPEGImages": "image", "SegmentationClass": "label", "scribbles": "scribble"}  # folder to write -> what a slice holds
SUFFIXES = {"image": "", "label": "_gt", "scribble": "_scribble"}  # of a NIfTI file


UNREADABLE = (OSError, EOFError, ValueError, zlib.error)  # errors of nibabel at a damaged file


class Slice(NamedTuple):
    """A slice of a NIfTI volume."""

    path: Path
    kind: str
    """image, label or scribble"""
    number: int


def read_acdc(root: Path) -> Source:
    """Reads the slices ROOT/ACDC_training_slices/patientNNN_frameNN_slice_N.h5 (or ROOT/patient*.h5), or the volumes
    patientNNN_frameNN.nii.gz, _gt.nii.gz and (if there) _scribble.nii.gz anywhere below ROOT. Every fifth patient, in order of
    their numbers, is in val. Raises UserError for missing files."""
    volumes = sorted(root.rglob("patient*_gt.nii.gz"))
    if volumes:
        return _volumes(volumes)
    folder = root / "ACDC_training_slices"
    folder = require(folder if folder.is_dir() else root, "the slices", PAGE)
    files = {path.stem: path for path in sorted(folder.glob("patient*.h5"))}
    if not files:
        raise UserError(
            f"{folder}: neither patientNNN_*.h5 nor patientNNN_frameNN_gt.nii.gz in it; download the slices from {PAGE}"
        )
    maps = {folder: {name: (path, key) for name, path in files.items()} for folder, key in KINDS.items()}
    return Source(ACDC_CLASSES, _splits({name: path.name for name, path in files.items()}), {}, maps, read_slice)


def _volumes(truths: list[Path]) -> Source:
    """Returns the slices of NIfTI volumes, and their spacing."""
    maps: dict[str, dict[str, Slice]] = {"JPEGImages": {}, "SegmentationClass": {}}
    spacing, of = {}, {}
    for truth in truths:
        volume = truth.name.removesuffix("_gt.nii.gz")
        files = {kind: truth.with_name(f"{volume}{suffix}.nii.gz") for kind, suffix in SUFFIXES.items()}
        require(files["image"], "the volumes with their images", PAGE)
        header = _open(truth).header
        columns, rows, slices = header.get_zooms()[:3]
        spacing[volume] = (float(slices), float(rows), float(columns))
        for number in range(header.get_data_shape()[2]):
            name = f"{volume}_slice_{number}"
            of[name] = volume
            for folder, kind in KINDS.items():
                if files[kind].is_file():
                    maps.setdefault(folder, {})[name] = Slice(files[kind], kind, number)
    without = len(of) - len(maps.get("scribbles", {}))
    if without:
        print(f"note: {without} of {len(of)} slices have no scribbles (NAME_scribble.nii.gz)", file=sys.stderr)
    return Source(ACDC_CLASSES, _splits(of), {}, maps, read_volume_slice, spacing=spacing)


def _splits(file_of: dict[str, str]) -> dict[str, list[str]]:
    """Returns the lists of both splits. file_of: image name -> a name that begins with the patient."""
    patients = {name: _patient(file) for name, file in file_of.items()}
    val = set(sorted(set(patients.values()))[VAL_EVERY - 1 :: VAL_EVERY])
    return {
        "train": [name for name in file_of if patients[name] not in val],
        "val": [name for name in file_of if patients[name] in val],
    }


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
    return _scaled(array, array.min(), array.max()) if key == "image" else _ids(array, path, key)


def read_volume_slice(entry: Slice) -> np.ndarray:
    """A slice of a NIfTI volume -> (H, W) uint8: the image, where the volume's darkest voxel is 0 and its 99th percentile 255;
    the label; or the scribbles with 255 = unlabelled. Raises UserError if the volume is unreadable."""
    volume = _read(entry.path)
    if entry.number >= len(volume):
        raise UserError(f"{entry.path}: {len(volume)} slices, fewer than the label's")
    if entry.kind == "image":
        return _scaled(volume[entry.number], volume.min(), np.percentile(volume, BRIGHTEST))
    return _ids(volume[entry.number], entry.path, entry.kind)


@lru_cache(maxsize=4)  # the slices of a volume come one after the other
def _read(path: Path) -> np.ndarray:
    """Returns a NIfTI volume as (slices, H, W), float64."""
    try:
        volume = np.asarray(_open(path).dataobj, np.float64)
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable NIfTI volume ({error})") from error
    return volume.T  # NIfTI's axes are columns, rows, slices


def _open(path: Path):
    nibabel = extra("nibabel")
    try:
        volume = nibabel.load(path)
    except (*UNREADABLE, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path}: not a readable NIfTI volume ({error})") from error
    if len(volume.shape) != 3:
        raise UserError(f"{path}: the volume has {len(volume.shape)} dimensions, but three are expected")
    return volume


def _scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    array = (array.astype(np.float64) - low) / max(high - low, 1e-9)
    return (255 * array.clip(0, 1)).round().astype(np.uint8)


def _ids(array: np.ndarray, path: Path, kind: str) -> np.ndarray:
    if not np.isin(array, range(NOT_SCRIBBLED + 1)).all():
        raise UserError(f"{path}: the {kind} holds ids outside 0 to {NOT_SCRIBBLED}")
    return np.where(array == NOT_SCRIBBLED, UNLABELLED, array).astype(np.uint8)


def _patient(name: str) -> int:
    match = re.match(r"patient(\d+)_", name)
    if not match:
        raise UserError(f"{name}: the file name must begin with patientNNN_")
    return int(match[1])
