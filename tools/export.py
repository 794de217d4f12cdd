"""A checkpoint's network as an ONNX file, for deployment without PyTorch.

    python -m tools.export runs/ss_stage2/best.pt --to onnx [--out runs/ss_stage2/best.onnx]

Input `image` (B, 3, H, W) float32, normalised as `datasets.transforms.normalise` does; output `logits` (B, C, H, W) float32, of
any batch and size. The class names and the normalisation are in the file's metadata. Before it is kept, the file is run
in onnxruntime at several sizes and compared with PyTorch.
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
from datasets.files import atomic_write
from datasets.transforms import MEAN, STD
from engine.checkpoint import load_model
from errors import Failure, UserError, extra, run
from methods.base import Method

SHAPES = ((1, 3, 97, 97), (2, 3, 129, 161), (3, 3, 100, 75))  # compared after the export: odd sizes, several batches
TOLERANCE = 1e-4  # largest difference of the logits allowed, of their largest value


@dataclass
class ExportConfig:
    """A checkpoint and the form it is wanted in."""

    checkpoint: str
    """a run's best.pt, or a released checkpoint"""
    to: Literal["onnx"] = "onnx"
    """the format"""
    out: str | None = None
    """file to write; unset: beside the checkpoint, under its name"""


class Logits(nn.Module):
    """A method's `predict` as a module's forward, which is what exporters take."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 3, H, W) -> logits (B, C, H, W)."""
        return self.method.predict(image)


def main() -> None:
    """The command line above. Raises UserError for an unreadable checkpoint, or an OUT that is there already."""
    config = parse(ExportConfig, __doc__, positional=True)
    out = Path(config.out) if config.out else Path(config.checkpoint).with_suffix(".onnx")
    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another --out")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extra(package)
    method = load_model(config.checkpoint)
    model = to_onnx(method)
    difference = largest_difference(method, model)
    if not difference <= TOLERANCE:
        raise Failure(f"the exported network's logits differ from PyTorch's by {difference:.1e} of their largest value")
    with atomic_write(out) as temporary:
        temporary.write_bytes(model)
    shapes = ", ".join("x".join(map(str, shape)) for shape in SHAPES)
    print(f"{out}: {len(model) / 1e6:.1f} MB; largest difference {difference:.1e} of the largest logit (at {shapes})")


def to_onnx(method: Method) -> bytes:
    """The ONNX model of `method.predict`, with a free batch, height and width."""
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # The exporter reports its progress on stdout, and warns of what its own passes do.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits(method).eval(), (torch.zeros(SHAPES[1]),), dynamo=True, dynamic_shapes={"image": free},
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    metadata = {"classes": list(method.classes), "mean": MEAN.tolist(), "std": STD.tolist()}
    assert program is not None, "dynamo=True returns a program"
    proto = program.model_proto  # made anew at every access
    extra("onnx.helper").set_model_props(proto, {name: json.dumps(value) for name, value in metadata.items()})
    return proto.SerializeToString()


def largest_difference(method: Method, model: bytes) -> float:
    """Of onnxruntime's logits from PyTorch's over random images of `SHAPES`, as a share of the largest logit."""
    session = extra("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in SHAPES:
        image = torch.randn(shape, generator=generator)
        with torch.inference_mode():
            wanted = method.predict(image)
        given = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
        differences.append(float((given - wanted).abs().max() / wanted.abs().max()))
    return max(differences)


if __name__ == "__main__":
    run(main)
