"""Reading and augmenting images and labels. `open_index` opens a split of a data set in either of two layouts."""

from pathlib import Path

from datasets.folder_layout import folder_index
from datasets.index import Index, read_class_file
from datasets.official.acdc import ACDC_CLASSES
from datasets.official.ade20k import ADE20K_CLASSES
from datasets.official.camvid import CAMVID_CLASSES
from datasets.official.cityscapes import CITYSCAPES_CLASSES
from datasets.official.coco import COCO_CLASSES
from datasets.official.pascal_context import CONTEXT_CLASSES
from datasets.official.voc import VOC_CLASSES
from datasets.voc_layout import voc_index
from errors import UserError

LAYOUTS = {"JPEGImages": voc_index, "images": folder_index}
CLASS_LISTS = {
    "voc": VOC_CLASSES,
    "context": CONTEXT_CLASSES,
    "cityscapes": CITYSCAPES_CLASSES,
    "coco": COCO_CLASSES,
    "ade20k": ADE20K_CLASSES,
    "acdc": ACDC_CLASSES,
    "camvid": CAMVID_CLASSES,
}


def open_index(root: str | Path, split: str, labels: str | Path | None = None, problems: list[str] | None = None) -> Index:
    """Returns the index of a split of the data at `root`. Folder JPEGImages means VOC's layout, images the plain layout.

    labels, problems: see `voc_index`. Raises UserError if `root` has neither folder, or if a file is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"data root {root} not found: give the folder that holds {' or '.join(LAYOUTS)} (DATA_ROOT, --data.root)"
        )
    for folder, layout in LAYOUTS.items():
        if (root / folder).is_dir():
            return layout(root, split, labels, problems)
    raise UserError(f"{root} holds neither {' nor '.join(LAYOUTS)}: see docs/data.md for the layouts")


def class_names(classes: str) -> tuple[str, ...]:
    """Returns class names in id order. `classes`: a name in `CLASS_LISTS` or a text file. Raises UserError otherwise."""
    if classes in CLASS_LISTS:
        return CLASS_LISTS[classes]
    if not Path(classes).is_file():
        raise UserError(f"--classes {classes}: choose {', '.join(CLASS_LISTS)}, or give a text file of class names")
    return read_class_file(Path(classes))
