"""Pictures of images and label maps side by side."""

import textwrap
from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from datasets.files import PALETTE, UNLABELLED

TILE = 192  # longer side of a tile, pixels
GAP = 4
CAPTION = 16
LINE, LETTER = 12, 6  # height of a line and width of a letter, pixels
CAPTION_LINES = 5
SHEET_COLUMNS = 6
BLANK = (235, 235, 235)  # unlabelled pixels and missing tiles
WRONG, RIGHT, VOID = (214, 64, 56), (222, 232, 226), (255, 255, 255)


def colour(label: np.ndarray) -> np.ndarray:
    """Returns class ids (H, W) uint8 as (H, W, 3) uint8 in the colours of `PALETTE`. 255 is light grey."""
    picture = PALETTE[label]
    picture[label == UNLABELLED] = BLANK
    return picture


def overlay(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns a label (H, W) uint8 in the colours of `PALETTE` on its faded image (H, W, 3) uint8; translucent if dense."""
    picture = 128 + image // 2
    labelled = label != UNLABELLED
    colours = PALETTE[label[labelled]]
    picture[labelled] = colours if labelled.mean() < 0.5 else colours // 2 + image[labelled] // 2
    return picture


def picture_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Returns rows of tiles under the column names. With `titles`, each row has a title above. A tile is an image (H, W, 3)
    uint8, a label map (H, W) uint8, or None (blank)."""
    tiles = [[None if tile is None else _tile(tile) for tile in row] for row in rows]
    sizes = [tile.size for row in tiles for tile in row if tile is not None]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    step = height + GAP + (CAPTION if titles else 0)
    grid = Image.new("RGB", (len(columns) * (width + GAP) + GAP, len(rows) * step + CAPTION + GAP), "white")
    draw = ImageDraw.Draw(grid)
    for column, name in enumerate(columns):
        draw.text((GAP + column * (width + GAP), 2), name, fill="black")
    for line, row in enumerate(tiles):
        top = CAPTION + GAP + line * step
        if titles:
            draw.text((GAP, top), titles[line], fill="black")
            top += CAPTION
        for column, tile in enumerate(row):
            corner = (GAP + column * (width + GAP), top)
            if tile is None:
                draw.rectangle([corner, (corner[0] + width - 1, corner[1] + height - 1)], fill=BLANK)
            else:
                grid.paste(tile, corner)
    return grid


def contact_sheet(images: Sequence[np.ndarray]) -> Image.Image:
    """Returns a picture of the images (H, W, 3) uint8 in rows of `SHEET_COLUMNS`."""
    rows = [images[start : start + SHEET_COLUMNS] for start in range(0, len(images), SHEET_COLUMNS)]
    return picture_grid(rows, [""] * min(SHEET_COLUMNS, len(images)))


def shrunk(array: np.ndarray) -> np.ndarray:
    """Returns an image (H, W, 3) uint8, a label map (H, W) uint8 or numbers (H, W) float, reduced to the size of a tile."""
    factor = TILE / max(array.shape[:2])
    if factor >= 1:
        return array
    is_label = array.ndim == 2 and array.dtype == np.uint8
    height, width = (max(1, round(side * factor)) for side in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_NEAREST if is_label else cv2.INTER_AREA)


def _tile(array: np.ndarray) -> Image.Image:
    is_label = array.ndim == 2
    image = Image.fromarray(colour(array) if is_label else array)
    factor = TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if is_label else Image.Resampling.BILINEAR)


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """Returns an image (H, W, 3) uint8 with the text below, in at most `CAPTION_LINES` lines: at most `TILE` pixels wide and
    high."""
    lines = textwrap.wrap(text, TILE // LETTER, max_lines=CAPTION_LINES, placeholder=" ...")
    tile = _tile(image)
    tile.thumbnail((TILE, TILE - LINE * len(lines)))
    picture = Image.new("RGB", (TILE, tile.height + LINE * len(lines)), "white")
    picture.paste(tile)
    ImageDraw.Draw(picture).multiline_text((1, tile.height), "\n".join(lines), fill="black", spacing=1)
    return np.array(picture)


def heat(values: np.ndarray) -> np.ndarray:
    """Returns values (H, W) float in [0, 1] as colours (H, W, 3) uint8 from dark to yellow."""
    return (255 * matplotlib.colormaps["viridis"](values)[..., :3]).astype(np.uint8)


def error_map(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the errors of a prediction (H, W) as (H, W, 3) uint8: wrong pixels red, unlabelled pixels white."""
    picture = np.where((prediction == truth)[..., None], np.array(RIGHT, np.uint8), np.array(WRONG, np.uint8))
    picture[truth == UNLABELLED] = VOID
    return picture
