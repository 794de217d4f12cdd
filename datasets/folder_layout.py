"""The plain layout: ROOT/images and ROOT/labels with any file names, and ROOT/classes.txt.

A split is ROOT/SPLIT.txt, or any path that ends in .txt, with one image name per line (the suffix is optional). Without a list,
the split is the images in ROOT/images/SPLIT.
"""

from pathlib import Path

from datasets.index import (
    IMAGE_SUFFIXES,
    Index,
    label_paths,
    read_class_file,
    read_names,
    read_tags,
    resolve_folder,
    split_file,
    without_suffix,
)
from errors import UserError


def folder_index(root: str | Path, split: str, labels: str | Path | None = None, problems: list[str] | None = None) -> Index:
    """Returns the index of a split in the plain layout. A label has the path of its image below images/, but ends in .png.

    labels: the folder of label PNGs, a folder of root or a path; None: images only. Raises UserError for a missing file, an
    empty split, or a name that leads out of the folders. If a list `problems` is given, messages about bad names and missing
    images go into the list, and these images are left out.
    """
    root = Path(root)
    list_file, subfolder = split_file(root, split), root / "images" / split
    images = images_below(root / "images")
    if list_file.is_file():
        names = tuple(without_suffix(name) for name in read_names(list_file, problems))
    elif subfolder.is_dir():
        names = tuple(name for name in images if name.startswith(f"{split}/"))
    else:
        raise UserError(f"{root}: no split {split}: list the images in {list_file}, or put them into {subfolder}")
    if not names and list_file.is_file():
        raise UserError(f"{list_file}: none of its names is in the image folder ({(problems or [''])[-1]})")
    if not names:
        raise UserError(f"{subfolder}: no image in it (suffixes: {', '.join(IMAGE_SUFFIXES)})")
    missing = [name for name in names if name not in images]
    if missing and (problems is None or len(missing) == len(names)):
        raise UserError(f"{list_file}: {missing[0]} is not among the images in {root / 'images'} ({len(missing)} are missing)")
    if missing and problems is not None:
        problems += [f"{list_file}: {name} is not among the images in {root / 'images'}" for name in missing]
        names = tuple(name for name in names if name in images)
    class_file = root / "classes.txt"
    if not class_file.is_file():
        raise UserError(f"{class_file} not found: write the class names there, one per line, in id order")
    classes = read_class_file(class_file)
    paths = None if labels is None else label_paths(resolve_folder(root, labels), names)
    return Index(names, tuple(images[name] for name in names), paths, classes, read_tags(root, names, classes))


def images_below(folder: Path) -> dict[str, Path]:
    """Returns the path of every image below `folder` by its name (the relative path without suffix), sorted. Hidden files, such
    as those of macOS, are left out. Raises UserError if two images differ only in the suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not hidden:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{path} and {found[name].name}: two images of one name would share a label; rename one")
            found[name] = path
    return found
