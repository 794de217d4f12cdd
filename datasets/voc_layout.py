"""PASCAL VOC's layout: ROOT/JPEGImages, label folders of PNGs, ROOT/ImageSets/Segmentation/SPLIT.txt, ROOT/classes.txt."""

from pathlib import Path

from datasets.index import (
    Index,
    collect,
    find_image,
    label_paths,
    read_class_file,
    read_names,
    read_tags,
    resolve_folder,
    split_file,
    without_suffix,
)
from datasets.official.voc import VOC_CLASSES
from errors import UserError


def voc_index(root: str | Path, split: str, labels: str | Path | None = None, problems: list[str] | None = None) -> Index:
    """Returns the index of a split in VOC's layout. split: a list in ImageSets/Segmentation, or any path that ends in .txt.

    labels: the folder of label PNGs, a folder of root or a path; None: images only. The classes are the lines of
    ROOT/classes.txt in id order, or VOC's 21. Raises UserError for a missing file, an empty split, or a name that leads out of
    the folders. If a list `problems` is given, messages about bad names and missing images go there; the images are left out.
    """
    root = Path(root)
    list_file = split_file(root / "ImageSets" / "Segmentation", split)
    if not list_file.is_file():
        raise UserError(f"{list_file} not found: a split is a text file of image names, one per line")
    folder = root / "JPEGImages"
    listed = map(without_suffix, read_names(list_file, problems))
    found = collect(lambda name: (name, find_image(folder, name)), listed, problems)
    if not found:
        raise UserError(f"{list_file}: none of its images is in {folder}")
    names, images = zip(*found, strict=True)
    class_file = root / "classes.txt"
    classes = read_class_file(class_file) if class_file.is_file() else VOC_CLASSES
    paths = None if labels is None else label_paths(resolve_folder(root, labels), names)
    return Index(names, images, paths, classes, read_tags(root, names, classes))
