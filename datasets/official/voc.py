"""PASCAL VOC (Everingham et al.), with SBD's labels (Hariharan et al., ICCV 2011)."""

from pathlib import Path

import numpy as np

from datasets.files import read_label, read_matlab
from datasets.index import read_names
from datasets.official.source import Source, read_xml, require
from errors import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(voc: Path, sbd: Path | None) -> Source:
    """Reads PASCAL VOC 2012 as unpacked (VOCdevkit/VOC2012), with SBD's labels for images that VOC has not segmented.

    sbd: benchmark_RELEASE/dataset (cls/NAME.mat), or a folder of label PNGs (SegmentationClassAug); None: VOC alone. The split
    train_aug is every segmented image outside VOC's val: 10,582 images with all of SBD. If both have a label, VOC's label is
    used. Raises UserError for missing files.
    """
    page = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    lists = require(voc / "ImageSets" / "Segmentation", "VOC 2012's lists (VOCtrainval_11-May-2012.tar)", page)
    images = require(voc / "JPEGImages", "VOC 2012's images", page)
    masks = require(voc / "SegmentationClass", "VOC 2012's masks", page)
    splits = {split: read_names(require(lists / f"{split}.txt", "VOC 2012's list", page)) for split in ("train", "val")}
    own = {name: masks / f"{name}.png" for split in splits.values() for name in split}
    added = {}
    if sbd is not None:
        sbd_page = "http://home.bharathh.info/pubs/codes/SBD/download.html"
        folder = sbd / "cls" if (sbd / "cls").is_dir() else sbd
        require(folder, "SBD's labels (cls/*.mat in benchmark_RELEASE/dataset, or SegmentationClassAug)", sbd_page)
        added = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".mat", ".png")}
        if not added:
            raise UserError(f"{folder}: neither .mat nor .png files in it; download SBD from {sbd_page}")
    val = set(splits["val"])
    both = {**added, **own}
    splits["train_aug"] = sorted(name for name in both if name not in val)
    return Source(
        classes=VOC_CLASSES,
        splits=splits,
        images={name: images / f"{name}.jpg" for name in sorted(both)},
        maps={"SegmentationClass": own, "SegmentationClassAug": both},
        read=read_voc_label,
        tags=_object_tags(voc / "Annotations", sorted(both)),
    )


def read_voc_label(path: Path) -> np.ndarray:
    """Reads a label of VOC (PNG) or SBD (MATLAB) as (H, W) uint8. Raises UserError if the label is unreadable."""
    if path.suffix == ".png":
        return read_label(path)
    return read_matlab(path, lambda content: content["GTcls"]["Segmentation"].item()).astype(np.uint8)


def _object_tags(folder: Path, names: list[str]) -> dict[str, list[str]] | None:
    """Reads the classes of the objects in VOC's Annotations/NAME.xml. Returns None if the download has no Annotations."""
    if not folder.is_dir():
        return None
    tags = {}
    for name in names:
        objects = {element.findtext("name") for element in read_xml(folder / f"{name}.xml").iter("object")}
        tags[name] = [name for name in VOC_CLASSES[1:] if name in objects]
    return tags
