"""Copies labels from two folders into one: of each image, from the first folder if it has the label, else from the second.

    python -m tools.merge_labels DATA_ROOT --split unlabelled --first runs/a/pseudo_labels --second runs/b/pseudo_labels \\
        --out DIR
"""

import shutil
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from command_line import parse
from datasets import open_index
from datasets.files import atomic_write
from engine.provenance import file_sha256, lines_sha256, open_output_folder
from errors import UserError, run


@dataclass
class MergeConfig:
    """Two folders of labels."""

    root: str
    """the data set"""
    _: KW_ONLY
    first: str
    """folder of the preferred labels"""
    second: str
    """folder of the other labels"""
    out: str
    """folder to write"""
    split: str = "train"
    """list of images to copy the labels of"""


def main() -> int:
    """Runs the command line above and returns the exit code. Raises UserError if a label is in neither folder."""
    config = parse(MergeConfig, __doc__, positional=True)
    names, out = open_index(config.root, config.split).names, Path(config.out)
    folders = Path(config.first), Path(config.second)
    records = [folder / "pseudo_labels.json" for folder in folders]
    sources = {"folders_sha256": [file_sha256(record) for record in records if record.is_file()]}
    open_output_folder(out / "pseudo_labels.json", sources | {"names_sha256": lines_sha256(names)})
    for name in names:
        found = next((file for folder in folders if (file := folder / f"{name}.png").is_file()), None)
        if found is None:
            raise UserError(f"{name}.png is in neither {config.first} nor {config.second}")
        if not (out / f"{name}.png").is_file():
            with atomic_write(out / f"{name}.png") as temporary:
                shutil.copyfile(found, temporary)
    print(f"{out}: {len(names)} labels")
    return 0


if __name__ == "__main__":
    run(main)
