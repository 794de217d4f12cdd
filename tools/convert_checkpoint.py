"""Converts a checkpoint that the authors of a paper released into a checkpoint of this project.

    python -m tools.convert_checkpoint FILE [--out runs/published/best.pt] [--shrink 2]

Recognises the random-walk and baseline networks of CC4S, and BLPSeg's network. evaluate.py, predict.py and --init read these
files without conversion. Convert a file to set --shrink, which the weights do not show, or to set the class names.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt

from command_line import parse
from datasets import class_names
from datasets.files import atomic_write
from engine.checkpoint import describe, model_of
from engine.published import convert, load_file
from errors import UserError, run


@dataclass
class ConvertConfig:
    """A published checkpoint."""

    file: str
    """the released file"""
    out: str = "runs/published/best.pt"
    """checkpoint to write"""
    shrink: PositiveInt = 1
    """shrink of the random walk in the released training command"""
    classes: str | None = None
    """voc, context, cityscapes, coco, ade20k, acdc, camvid, or a file of class names; unset: the list with as many names"""


def main() -> None:
    """Runs the command line above. Raises UserError for an unknown network, or if OUT exists."""
    config = parse(ConvertConfig, __doc__, positional=True)
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another --out")
    content = convert(load_file(config.file), config.file, config.shrink)
    if config.classes is not None:
        names = class_names(config.classes)
        if len(names) != len(content["classes"]):
            raise UserError(f"{config.file}: {len(content['classes'])} classes, but --classes has {len(names)}")
        content["classes"] = list(names)
    model_of(content, config.file)  # refuses weights that do not fit
    with atomic_write(out) as temporary:
        torch.save(content, temporary)
    print(f"{out}: {describe(content['config'])}, {len(content['classes'])} classes")


if __name__ == "__main__":
    run(main)
