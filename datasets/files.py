"""Reading and writing of images, label maps and superpixels. Every error names the file."""

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
MOST_PIXELS = 89_478_485  # limit on the image size that an annotation gives; PIL warns about larger images

cv2.utils.logging.setLogLevel(0)  # OpenCV prints about bad files; the errors below name the file


def _voc_palette() -> np.ndarray:
    """PASCAL VOC's palette: bit 3k + c of an id is bit 7 - k of channel c (red, green, blue)."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()
"""PASCAL VOC's colour of each class id, (256, 3) uint8 RGB."""


def read_image(path: Path) -> np.ndarray:
    """Reads an image as (H, W, 3) uint8 RGB; more than 8 bits go through `eight_bits`. Raises UserError if the file is missing,
    unreadable or too large (`_sized`)."""
    # cv2.imread would print its own warnings about a bad file, and does not say why reading failed.
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise UserError(f"{path}: not a readable image; replace the file or remove its name from the list")
    return cv2.cvtColor(eight_bits(image), cv2.COLOR_BGR2RGB)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Returns an image of any shape as uint8. Values of more than 8 bits are scaled: the least becomes 0, the largest 255."""
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    return (255 * (values - values.min()) / max(float(np.ptp(values)), 1e-12)).round().astype(np.uint8)


def read_label(path: Path) -> np.ndarray:
    """Reads a label map from a palette or grey PNG as (H, W) uint8 class ids. Raises UserError if the file is missing,
    unreadable, too large (`_sized`) or in colours."""
    with opened_label(path) as image:
        if image.mode in ("P", "L"):
            return np.array(image)
        what = f"{path}: a label is a palette or grey PNG of 8 bits with class ids, but this is {image.mode}"
        if image.mode in ("RGB", "RGBA"):
            raise UserError(f"{what}; if the colours stand for classes, run tools.check_dataset --convert (docs/data.md)")
        raise UserError(f"{what}: save it as 8-bit grey")


def read_label_or_none(path: Path) -> np.ndarray | None:
    """Reads a label map only to show it. Returns None for a missing or bad label. Training, evaluation and
    tools.check_dataset report bad labels."""
    try:
        return read_label(path) if path.is_file() else None
    except UserError:
        return None


@contextmanager
def opened_label(path: Path) -> Iterator[Image.Image]:
    """Opens a label image, to decode in the `with` block. Raises UserError if the file is missing, unreadable or too large."""
    try:
        with _sized(path, path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"{path}: label not found") from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:  # PIL raises these on broken PNG chunks
        raise UserError(f"{path}: not a readable label image ({error})") from error


def write_label(path: Path, label: np.ndarray) -> None:
    """Writes an (H, W) uint8 label map as a PNG with the colours of `PALETTE`. The write is atomic."""
    image = Image.fromarray(label)
    image.putpalette(PALETTE.reshape(-1).tolist())
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Makes the folder of `path` and yields a temporary path there. The file becomes `path` at the end; an error deletes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # two shards may write the same file at once
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8. The write is atomic."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_superpixel(path: Path) -> np.ndarray:
    """Reads a superpixel map as (H, W) uint16, `NO_SUPERPIXEL` = none. Raises UserError if the file is not a 16-bit PNG."""
    superpixel = _decode(path, cv2.IMREAD_UNCHANGED)
    if superpixel is None or superpixel.dtype != np.uint16 or superpixel.ndim != 2:
        raise UserError(f"{path}: not a 16-bit superpixel map; delete it and run python -m tools.superpixels")
    return superpixel


def read_edges(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads superpixel edges: (M, 2) int64 pairs of ids and (M,) float32 weights. Raises UserError for a bad file."""
    try:
        with np.load(path, allow_pickle=False) as arrays, np.errstate(over="ignore"):
            edges, weights = arrays["edges"].astype(np.int64), arrays["weights"].astype(np.float32)
    except Exception as error:  # a damaged zip file raises many kinds of exceptions
        raise UserError(f"{path}: not a readable edge list; delete it and run python -m tools.superpixels") from error
    fitting = edges.ndim == 2 and edges.shape[1] == 2 and weights.shape == edges.shape[:1]
    if not fitting or not ((edges >= 0) & (edges < NO_SUPERPIXEL)).all() or not (np.isfinite(weights) & (weights >= 0)).all():
        raise UserError(f"{path}: not an edge list; delete it and run python -m tools.superpixels")
    return edges, weights


@contextmanager
def _sized(file: Path | io.BytesIO, path: Path) -> Iterator[Image.Image]:
    """Opens an image and reads only its header. Raises UserError for an image over PIL's limit, 179 million pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about images over half its limit and about odd metadata
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise UserError(f"{path}: too large, perhaps a decompression bomb ({error})") from error
    with image:
        yield image


def _decode(path: Path, flags: int) -> np.ndarray | None:
    """Decodes an image file with OpenCV. Returns None if that fails. Raises UserError if the file cannot be opened."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    # PIL's errors are ignored here: OpenCV may know a format that PIL does not know.
    with contextlib.suppress(OSError, SyntaxError, ValueError), _sized(io.BytesIO(data.tobytes()), path) as image:
        if image.format == "PNG" and not _intact(image):
            return None
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        return None


def _intact(png: Image.Image) -> bool:
    """Whether a PNG passes PIL's checks. For most PNGs that fail, the library under OpenCV would print its own messages."""
    try:
        png.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def read_matlab(path: Path, pick: Callable[[dict], np.ndarray]) -> np.ndarray:
    """Returns the 2-D array that `pick` takes from the content of a MATLAB file. Raises UserError for a bad file."""
    try:
        array = np.asarray(pick(loadmat(path, squeeze_me=True)))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise UserError(f"{path}: not a readable MATLAB label ({type(error).__name__}: {error})") from error
    if array.ndim != 2:
        raise UserError(f"{path}: the label has {array.ndim} dimensions, but two are expected")
    return array


def read_matlab73(path: Path, name: str) -> np.ndarray:
    """Returns the 2-D array `name` of a MATLAB 7.3 file (HDF5). Raises UserError for a bad file."""
    h5py = extra("h5py")
    try:
        with h5py.File(path, "r") as file:
            array = np.asarray(file[name]).T  # MATLAB stores columns first
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise UserError(f"{path}: not a readable MATLAB 7.3 file with {name} ({type(error).__name__}: {error})") from error
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{path}: {name} is not a matrix of numbers")
    return array
