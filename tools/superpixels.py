"""Makes superpixels of each training image, for the soft entropy and the colour constraint.

    python -m tools.superpixels DATA_ROOT [--split train] [--out superpixels] [--segments 800]
    python -m tools.superpixels DATA_ROOT --released FOLDER     # FOLDER/spiex/NAME.mat and FOLDER/Laplace/NAME.mat of CC4S

Writes three files per image: OUT/map/NAME.png (16-bit ids), OUT/boundary/NAME.png (255 at boundaries) and OUT/edges/NAME.npz
(`edges` (M, 2) int32 pairs of adjacent superpixels, `weights` (M,) float32 in [0, 0.8]). Images that have all three files
are skipped.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt
from PIL import Image
from skimage.segmentation import find_boundaries

from command_line import parse
from datasets import open_index
from datasets.drawing.demo import draw_if_missing
from datasets.files import atomic_write, read_image
from datasets.segmentation import Superpixels
from datasets.superpixel_graph import read_released, segment, similarities
from engine.provenance import open_output_folder, read_record
from errors import UserError, run
from tools.batch import BatchConfig, process


@dataclass
class SuperpixelConfig(BatchConfig):
    """Superpixels of each training image, for the soft entropy and the colour constraint."""

    root: str
    """the data set"""
    out: str = "superpixels"
    """folder to write: a folder of root, or a path with a slash"""
    split: str = "train"
    """list of images"""
    segments: PositiveInt = 800
    """approximate number of superpixels per image"""
    compactness: PositiveFloat = 10.0
    """compactness of SLIC; a higher value makes squarer superpixels that follow colour less"""
    released: str | None = None
    """folder with spiex/ and Laplace/ from CC4S's scribblesup.m: convert these files instead of making superpixels"""


def main() -> int:
    """Runs the command line above. Returns the exit code, 1 if an image failed. Raises UserError for missing data."""
    config = parse(SuperpixelConfig, __doc__, positional=True)
    draw_if_missing(config.root)
    problems: list[str] = []
    index = open_index(config.root, config.split, problems=problems)
    out = Path(config.out)
    superpixels = Superpixels(out if len(out.parts) > 1 else Path(config.root) / out)
    record = superpixels.folder / "superpixels.json"
    if config.released is None:  # the stage scripts do not pass --released: a converted folder stays converted
        config = replace(config, released=(read_record(record) or {}).get("released"))
    conditions = {"segments": config.segments, "compactness": config.compactness}
    if config.released is not None:
        conditions = {"released": config.released}
    open_output_folder(record, conditions)
    images = dict(zip(index.names, index.images, strict=True))
    work = partial(prepare, superpixels, config)
    return process(work, images, superpixels.present, config, f"superpixels in {superpixels.folder}", problems)[1]


def prepare(superpixels: Superpixels, config: SuperpixelConfig, name: str, path: Path) -> None:
    """Writes the three files of image `name`. Each write is atomic."""
    image = read_image(path)
    if config.released is None:
        superpixel = segment(image, config.segments, config.compactness)
        edges, weights = similarities(image, superpixel)
    else:
        superpixel, edges, weights = read_released(Path(config.released), name)
        if superpixel.shape != image.shape[:2]:
            raise UserError(f"{config.released}/spiex/{name}.mat is of another size than {path}")
    boundary = find_boundaries(superpixel, mode="thick")
    with atomic_write(superpixels.map(name)) as temporary:
        Image.fromarray(superpixel).save(temporary, "PNG")
    with atomic_write(superpixels.boundary(name)) as temporary:
        Image.fromarray(np.uint8(255) * boundary).save(temporary, "PNG")
    with atomic_write(superpixels.edges(name)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, edges=edges, weights=weights)


if __name__ == "__main__":
    run(main)
