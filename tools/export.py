"""Exports the network of a checkpoint as an ONNX file, for use without PyTorch.

    python -m tools.export runs/ss_stage2/best.pt --to onnx [--out runs/ss_stage2/best.onnx]

Input: `image` (B, 3, H, W) float32, normalised like `datasets.transforms.normalise`. Output: `logits` (B, C, H, W) float32.
Batch and size are free. The metadata of the file hold the class names, their colours and the normalisation; docs/deploy.md has
code that runs the file without PyTorch. Before the tool keeps the file, the tool runs the file in onnxruntime at several sizes
and compares the logits with PyTorch's.
"""

import contextlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.export import Dim

from command_line import parse
from datasets.files import PALETTE, atomic_write
from datasets.transforms import MEAN, STD
from engine.checkpoint import load_model
from engine.inference import on_grid
from engine.shared import HUB, weights_file
from errors import Failure, UserError, extra, run
from methods.base import Method

SHAPES = ((1, 3, 97, 97), (2, 3, 129, 161), (3, 3, 100, 75))  # inputs to compare with PyTorch: odd sizes, several batches
TOLERANCE = 1e-4  # largest allowed difference of logits, as a share of the largest logit


@dataclass
class ExportConfig:
    """A checkpoint and the format of the export."""

    checkpoint: str
    """a run's best.pt, or a released checkpoint"""
    to: Literal["onnx"] = "onnx"
    """the format"""
    out: str | None = None
    """file to write; unset: the path of the checkpoint, but ending in .onnx"""


class Logits(nn.Module):
    """A module whose forward predicts images of any size. The exporter needs a module."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method
        self.predict = on_grid(method)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 3, H, W) -> logits (B, C, H, W)."""
        return self.predict(image)


def main() -> None:
    """Runs the command line above. Raises UserError for a bad checkpoint or an existing OUT, Failure if logits differ."""
    config = parse(ExportConfig, __doc__, positional=True)
    if config.out is None and config.checkpoint.startswith(HUB):
        raise UserError(f"--out is needed for {config.checkpoint}")
    out = Path(config.out) if config.out else weights_file(config.checkpoint).with_suffix(".onnx")
    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another --out")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extra(package)
    method = load_model(config.checkpoint)
    model = to_onnx(method)
    difference = largest_difference(method, model)
    if not difference <= TOLERANCE:
        raise Failure(f"the exported logits differ from PyTorch's by {difference:.1e} of the largest logit; nothing is written")
    with atomic_write(out) as temporary:
        temporary.write_bytes(model)
    shapes = ", ".join("x".join(map(str, shape)) for shape in SHAPES)
    print(f"{out}: {len(model) / 1e6:.1f} MB; largest difference {difference:.1e} of the largest logit (at {shapes})")


def to_onnx(method: Method) -> bytes:
    """Returns the ONNX model of `on_grid(method)`, with free batch, height and width."""
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # The exporter prints its progress to stdout and warns about its own passes.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits(method).eval(), (torch.zeros(SHAPES[1]),), dynamo=True, dynamic_shapes={"image": free},
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    colours = PALETTE[: len(method.classes)].tolist()
    metadata = {"classes": list(method.classes), "colours": colours, "mean": MEAN.tolist(), "std": STD.tolist()}
    assert program is not None, "dynamo=True returns a program"
    proto = program.model_proto  # every access makes a new one
    extra("onnx.helper").set_model_props(proto, {name: json.dumps(value) for name, value in metadata.items()})
    return proto.SerializeToString()


def largest_difference(method: Method, model: bytes) -> float:
    """Returns the largest difference between onnxruntime's and PyTorch's logits, as a share of the largest logit."""
    session = extra("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in SHAPES:
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            wanted = on_grid(method)(image)
        given = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
        differences.append(float((given - wanted).abs().max() / wanted.abs().max()))
    return max(differences)


if __name__ == "__main__":
    run(main)
