"""Pictures that come in: decoded with limits, turned upright, made smaller if large."""

import io
import re
import warnings
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps

from datasets.files import atomic_write, eight_bits
from datasets.index import IMAGE_SUFFIXES
from errors import UserError

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".png", "WEBP": ".png"}  # format of a file -> suffix of the stored picture
ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture lies on its side
MOST_BYTES = 100_000_000  # of a file
MOST_PIXELS = 64_000_000  # of a picture, before it is made smaller


def decode(data: bytes, name: str, long_side: int) -> tuple[Image.Image, str, str | None]:
    """Returns a picture (RGB, upright), its suffix, and a note if the picture was made smaller than it is.

    long_side: largest side in pixels. Raises UserError for another format, too many pixels or a damaged file.
    """
    if len(data) > MOST_BYTES:
        raise UserError(f"{name}: over {MOST_BYTES // 1_000_000} MB: make the file smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large pictures and odd metadata
            with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise UserError(f"{name}: over {MOST_PIXELS // 1_000_000} megapixels: make the picture smaller")
                suffix, whole = FORMATS[str(opened.format)], max(opened.size)
                opened.draft("RGB", (long_side, long_side))  # a JPEG is decoded at a fraction of its size
                picture = _eight_bits(opened)
                picture = picture if picture.mode == "RGB" else picture.convert("RGB")
                picture.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
                picture = ImageOps.exif_transpose(picture)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise UserError(f"{name}: not a readable PNG, JPEG, TIFF or WebP picture") from error
    smaller = max(picture.size) < whole
    note = f"{name}: made smaller, {picture.width} x {picture.height} pixels (--long_side {long_side})" if smaller else None
    return picture, suffix, note


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Returns a picture of more than 8 bits with its values scaled to 8 bits."""
    if picture.mode not in ("I;16", "I;16B", "I", "F"):
        return picture
    return Image.fromarray(eight_bits(np.asarray(picture)))


def files_in(root: Path) -> list[Path]:
    """Returns the pictures in a studio's folder."""
    folder = root / "JPEGImages"
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]


def size_of(path: Path) -> tuple[int, int]:
    """Returns the width and height of a picture that is turned upright. Raises UserError for an unreadable file."""
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            # PIL gives the upright size of a TIFF.
            turned = opened.format != "TIFF" and opened.getexif().get(ORIENTATION, 1) >= 5
    except Exception as error:  # a damaged file raises many kinds of exceptions
        raise UserError(f"{path}: not a readable picture: replace it or move it out of the folder") from error
    return (height, width) if turned else (width, height)


def store(picture: Image.Image, path: Path) -> None:
    """Writes a picture as .jpg or .png. The write is atomic."""
    with atomic_write(path) as temporary:
        if path.suffix == ".jpg":
            picture.save(temporary, "JPEG", quality=95, subsampling=0)
        else:
            picture.save(temporary, "PNG")


def free_id(file_name: str, taken: set[str]) -> str:
    """Returns a picture id for a file name: letters, digits, - and _ only, and not one of `taken`."""
    stem = PurePath(file_name.replace("\\", "/")).stem
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:80] or "picture"
    number, chosen = 2, base
    while chosen in taken:
        number, chosen = number + 1, f"{base}_{number}"
    return chosen
