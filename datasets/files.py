"""Reading and writing of images, label maps and superpixels; every failure names the file."""

import contextlib
import io
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import loadmat

from errors import UserError, extra

UNLABELLED = 255
NO_SUPERPIXEL = 65535
MOST_PIXELS = 89_478_485  # of an image that an annotation describes; PIL warns of larger ones

cv2.utils.logging.setLogLevel(0)  # what it prints of a bad file, the errors below say with the file's name


def _voc_palette() -> np.ndarray:
    """The bits of an id, three at a time, from the top bits of red, green, blue down."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()
"""PASCAL VOC's colours of the ids, (256, 3) uint8 RGB."""


def read_image(path: Path) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB. Raises UserError if it is missing, unreadable, or says that it is absurdly large."""
    # cv2.imread would print warnings of its own about a bad file, and cannot say why it failed.
    image = _decode(path, cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path}: not a readable image; replace it or take its name off the list")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """A label map as (H, W) uint8 class ids from a palette or grey PNG. Raises UserError if it is missing, unreadable,
    absurdly large or in colours."""
    with opened_label(path) as image:
        if image.mode in ("P", "L"):
            return np.array(image)
        what = f"{path}: a label is a palette or grey PNG of 8 bits with class ids, this is {image.mode}"
        if image.mode in ("RGB", "RGBA"):
            raise UserError(
                f"{what}; if its colours stand for classes, tools.check_dataset --convert writes ids (docs/data.md)"
            )
        raise UserError(f"{what}: save it as 8-bit grey")


def shown_label(path: Path) -> np.ndarray | None:
    """`read_label` for a picture: None where there is none, or none that can be read; what trains on a label, scores it or
    checks it tells of that."""
    try:
        return read_label(path) if path.is_file() else None
    except UserError:
        return None


@contextmanager
def opened_label(path: Path) -> Iterator[Image.Image]:
    """A label image, to be decoded within. Raises UserError if it is missing, unreadable or absurdly large."""
    try:
        with _sized(path, path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path}: label not found") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:  # what PIL raises on broken PNG chunks
        raise UserError(f"{path}: not a readable label image ({error})") from error


def write_label(path: Path, label: np.ndarray) -> None:
    """Writes an (H, W) uint8 label map as a PNG in the colours of `PALETTE`, whole or not at all."""
    image = Image.fromarray(label)
    image.putpalette(PALETTE.reshape(-1).tolist())
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made; it becomes `path` when the block ends, and goes if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # shards may write one and the same file at once
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_superpixel(path: Path) -> np.ndarray:
    """A superpixel map as (H, W) uint16, `NO_SUPERPIXEL` where there is none. Raises UserError if it is no 16-bit PNG."""
    superpixel = _decode(path, cv2.IMREAD_UNCHANGED)
    if superpixel is None or superpixel.dtype != np.uint16 or superpixel.ndim != 2:
        raise UserError(f"{path}: not a 16-bit superpixel map; delete it and run python -m tools.superpixels")
    return superpixel


def read_edges(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Superpixel edges as (M, 2) int64 pairs of ids and (M,) float32 weights. Raises UserError if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as arrays, np.errstate(over="ignore"):
            edges, weights = arrays["edges"].astype(np.int64), arrays["weights"].astype(np.float32)
    except Exception as error:  # a damaged zip fails in many ways; each means the same to the user
        raise UserError(f"{path}: not a readable edge list; delete it and run python -m tools.superpixels") from error
    fitting = edges.ndim == 2 and edges.shape[1] == 2 and weights.shape == edges.shape[:1]
    if not fitting or not ((edges >= 0) & (edges < NO_SUPERPIXEL)).all() or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f"{path}: not an edge list; delete it and run python -m tools.superpixels")
    return edges, weights


@contextmanager
def _sized(file: Path | io.BytesIO, path: Path) -> Iterator[Image.Image]:
    """An image of which only the header has been read. Raises UserError if it would take more memory than any photo does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of pictures half as large as it refuses, and of odd metadata
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise UserError(f"{path}: refused, a decompression bomb ({error})") from error
    with image:
        yield image


def _decode(path: Path, flags: int) -> np.ndarray | None:
    """OpenCV's reading of an image file; None where it cannot."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    # What PIL does not know, OpenCV may.
    with contextlib.suppress(OSError, SyntaxError, ValueError), _sized(io.BytesIO(data.tobytes()), path) as image:
        if image.format == "PNG" and not _intact(image):
            return None
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        return None


def _intact(png: Image.Image) -> bool:
    """Whether what PIL checks of it is whole. Of most that is not, the library below OpenCV would print lines of its own."""
    try:
        png.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def read_matlab(path: Path, pick: Callable[[dict], np.ndarray]) -> np.ndarray:
    """The 2-D array that `pick` takes out of a MATLAB file's content. Raises UserError if there is none."""
    try:
        array = np.asarray(pick(loadmat(path, squeeze_me=True)))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except Exception as error:  # a damaged file fails in many ways; each means the same to the user
        raise UserError(f"{path}: not a readable MATLAB label ({type(error).__name__}: {error})") from error
    if array.ndim != 2:
        raise UserError(f"{path}: its label has {array.ndim} dimensions, two are expected")
    return array


def read_matlab73(path: Path, name: str) -> np.ndarray:
    """The 2-D array called `name` in a MATLAB 7.3 file, which is HDF5. Raises UserError if there is none."""
    h5py = extra("h5py")
    try:
        with h5py.File(path, "r") as file:
            array = np.asarray(file[name]).T  # MATLAB writes columns first
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except Exception as error:  # a damaged file fails in many ways; each means the same to the user
        raise UserError(f"{path}: not a readable MATLAB 7.3 file with {name} ({type(error).__name__}: {error})") from error
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{path}: {name} is no matrix of numbers")
    return array
