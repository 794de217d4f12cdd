"""Seconds of SCG and PAMR, and of RecurSeed's steps, compared with plain loops and with the bare network.

    python -m benchmarks.tags                                     # CPU: ResNet-50, crop 512, 2 images, 2 tags an image
    python -m benchmarks.tags --device cuda --batch 16

loop    SCG class by class and PAMR with a copy of the neighbours for every class, all classes (`benchmarks/textbook.py`)
seeds   the same by `ops`: SCG by two matrix products, PAMR of the tagged classes
floor   the forward and backward pass of the network and of its classifier, without losses
step    a step of train.py after the decoder's start
mix     a step with CertainMix

Each measurement has its own process: one step, then STEPS timed steps. The median counts.
"""

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from benchmarks import textbook
from benchmarks.measure import alone, as_json, repeat
from command_line import parse
from config import Device, ModelConfig, Precision, TrainConfig
from datasets.batch import Batch, to_device
from engine import distributed
from engine.preparation import build_optimizer
from errors import run
from methods import build_method
from methods.recurseed import RecurSeedConfig
from ops.resizing import resize
from ops.seeds import activation_maps

Way = Literal["loop", "seeds", "floor", "step", "mix"]
WAYS: tuple[Way, ...] = ("loop", "seeds", "floor", "step", "mix")


@dataclass
class TagsConfig:
    """The network and the batch."""

    device: Device = "cpu"
    """device"""
    backbone: str = "resnet50"
    """encoder of the network"""
    crop: PositiveInt = 512
    """side of the images, pixels"""
    batch: PositiveInt = 2
    """images in a step"""
    classes: PositiveInt = 21
    """number of classes, background included"""
    tags: PositiveInt = 2
    """tags of an image"""
    dilations: tuple[PositiveInt, ...] = RecurSeedConfig.dilations
    """distances of PAMR's neighbours, pixels"""
    precision: Precision = "auto"
    """precision of the network"""
    ways: tuple[Way, ...] = WAYS
    """what to measure"""
    steps: PositiveInt = 5
    """timed steps"""


def main() -> None:
    """Runs the command line above."""
    config = parse(TagsConfig, __doc__)
    rows = [{"way": way, **alone(measure, config, way)} for way in tqdm(config.ways, unit="run", leave=False)]
    for row in rows:
        row["seconds"] = statistics.median(row["seconds"])
        print(f"{row['way']:<6} {row['seconds']:8.3f} s {row['memory'] / 1e6:7.0f} MB")
    seconds = {row["way"]: row["seconds"] for row in rows}
    for of, over in (("loop", "seeds"), ("seeds", "step"), ("step", "floor"), ("mix", "step")):
        if of in seconds and over in seconds:
            print(f"{f'{of} / {over}':<13} {seconds[of] / seconds[over]:.2f}")
    device = distributed.pick_device(config.device)
    settings = {name: getattr(config, name) for name in ("backbone", "crop", "batch", "classes", "tags", "dilations", "steps")}
    print(as_json(rows, device, precision=distributed.pick_precision(device, config.precision), **settings))


def measure(config: TagsConfig, way: Way) -> dict:
    """Measures one version in this process: seconds of each timed step, and peak memory in bytes."""
    device = distributed.pick_device(config.device)
    precision = distributed.pick_precision(device, config.precision)
    torch.manual_seed(0)
    settings = RecurSeedConfig(dilations=config.dilations)
    method: Any = build_method(settings, ModelConfig(config.backbone, "none"), config.classes).to(device)
    method.to(memory_format=torch.channels_last)
    method.begin_training(None)
    method.begin_step(0, settings.mix_from if way == "mix" else settings.segment_from)
    batch = to_device(make_batch(config), device)
    if way in ("loop", "seeds"):
        return repeat(partial(seeds, method, batch, way, *random_maps(method, batch, config)), config.steps, 1, device)
    optimizer = build_optimizer(method, TrainConfig(lr=1e-4))

    def step() -> None:
        with distributed.autocast(device, precision):
            loss = floor(method, batch["image"]) if way == "floor" else torch.stack([*method(batch).values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if way != "floor":
            method.after_step()

    return repeat(step, config.steps, 1, device)


def floor(method: Any, images: torch.Tensor) -> torch.Tensor:
    """Runs the network. The mean of its logits replaces the losses."""
    logits, activations = method.network.segment_and_classify(images)
    return logits.float().mean() + activations.float().mean()


def seeds(method: Any, batch: Batch, way: Way, maps: list[torch.Tensor], activations: torch.Tensor) -> None:
    """SCG and PAMR of a batch."""
    if way == "seeds":
        method.seeds(batch["image"], batch["tags"], batch["outside"], maps, activations)
        return
    size = batch["image"].shape[-2:]
    features = [resize(one, activations.shape[-2:], align_corners=False) for one in method.network.correlated(maps)]
    grown = textbook.grown_maps(features, activation_maps(activations, batch["outside"]))
    large = resize(grown, size, align_corners=False)
    textbook.pamr(batch["image"].contiguous(), large, method.config.refine, list(method.config.dilations))


def random_maps(method: Any, batch: Batch, config: TagsConfig) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random features of the encoder's sizes, and blobs of activations."""
    draw, device = torch.Generator().manual_seed(1), batch["image"].device
    maps = [
        torch.randn(config.batch, width, config.crop // stride, config.crop // stride, generator=draw).relu().to(device)
        for stride, width in zip(method.network.backbone.strides, method.network.backbone.widths, strict=True)
    ]
    blobs = torch.rand(config.batch, config.classes - 1, 4, 4, generator=draw)
    return maps, resize(blobs, (config.crop // 16, config.crop // 16), align_corners=False).to(device)


def make_batch(config: TagsConfig) -> Batch:
    """A batch as `collate` makes it: smooth random images with random tags."""
    draw = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(config.batch, 3, config.crop // 8, config.crop // 8, generator=draw)
    images = resize(coarse, (config.crop, config.crop), align_corners=False).byte()
    tags = torch.zeros(config.batch, config.classes - 1)
    for row in tags:
        row[torch.randperm(config.classes - 1, generator=draw)[: config.tags]] = 1
    outside = torch.zeros(config.batch, config.crop, config.crop, dtype=torch.bool)
    return {"image": images.contiguous(memory_format=torch.channels_last), "tags": tags, "outside": outside}


if __name__ == "__main__":
    run(main)
