"""Seconds and peak memory of a training step of every stage, compared with the plain formulas and with the bare network.

    python -m benchmarks.steps                                            # CPU: ResNet-18, crop 465, 2 images
    python -m benchmarks.steps --device cuda --backbone resnet50 --batch 16 --out steps_cuda.json

Three versions of a step, with the same images, weights and optimizer:

textbook  `benchmarks/textbook.py`: every N x N matrix in full, float32, channels first
fast      the step of train.py (without the scaling of the loss that fp16 needs)
floor     the lower limit: the forward and backward pass of the network alone, with train.py's precision and memory layout; SS
          also has one forward pass of the features without gradient, CISC-R's retraining one of the teacher

The stages pairs and retrain are CISC-R's, without a textbook version. A step has 2 BATCH images, and the teacher sees as many.

Each measurement has its own process: WARM steps, then STEPS timed steps. Rounds alternate between the versions. The median step
of all rounds counts. Memory is the peak minus the memory when the batch is ready: the resident set on a CPU, allocated bytes on
a GPU. A version that does not fit on the GPU has no row. --out is written after every measurement.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from jsonargparse.typing import PositiveInt
from tqdm import tqdm

from benchmarks import textbook
from benchmarks.measure import ROOT, alone, as_json, repeat
from command_line import parse
from config import Device, ModelConfig, Precision, TrainConfig
from datasets.batch import Batch, to_device
from engine import distributed
from engine.preparation import build_optimizer
from errors import run
from methods import SETTINGS, build_method

Stage = Literal["baseline", "ur", "ss", "ss_stage2", "pairs", "retrain"]
STAGES: tuple[Stage, ...] = ("baseline", "ur", "ss", "ss_stage2")
CISC_R = ("pairs", "retrain")
Way = Literal["textbook", "fast", "floor"]
WAYS: tuple[Way, ...] = ("textbook", "fast", "floor")
UNMEASURED = [(stage, "textbook") for stage in CISC_R]
SUPERPIXELS, WARM = 800, 1


@dataclass
class StepsConfig:
    """The network, the batch and the number of rounds."""

    device: Device = "cpu"
    """device"""
    backbone: str = "resnet18"
    """encoder of the network"""
    crop: PositiveInt = 465
    """side of the images, in pixels"""
    batch: PositiveInt = 2
    """images per step"""
    classes: PositiveInt = 21
    """number of classes"""
    precision: Precision = "auto"
    """precision of fast and floor; textbook always has fp32"""
    stages: tuple[Stage, ...] = STAGES
    """stages to measure"""
    ways: tuple[Way, ...] = WAYS
    """versions to measure; the textbook's has no decoder"""
    decoder: Literal["none", "lowlevel", "unet"] = "none"
    """decoder of the network"""
    rounds: PositiveInt = 3
    """rounds; each round runs the three versions"""
    steps: PositiveInt = 2
    """timed steps per round"""
    out: str | None = None
    """JSON file for the rows and the conditions"""


def main() -> None:
    """Runs the command line above."""
    config = parse(StepsConfig, __doc__)
    ways = {stage: [way for way in config.ways if (stage, way) not in UNMEASURED] for stage in config.stages}
    measured: dict[tuple[str, str], list[dict]] = {(stage, way): [] for stage in config.stages for way in ways[stage]}
    turns = [(stage, way) for stage in config.stages for _ in range(config.rounds) for way in ways[stage]]
    device = distributed.pick_device(config.device)
    settings = {name: getattr(config, name) for name in ("backbone", "decoder", "crop", "batch", "classes", "rounds", "steps")}
    settings["precision"] = distributed.pick_precision(device, config.precision)
    for turn in tqdm(turns, unit="run", leave=False):
        stage, way = turn
        try:
            measured[turn].append(alone(measure, config, stage, way))
        except torch.OutOfMemoryError:
            tqdm.write(f"{stage}, {way}: does not fit into the GPU's memory")
            continue
        tqdm.write(f"{stage}, {way}: {measured[turn][-1]['seconds'][-1]:.3f} s, {measured[turn][-1]['memory'] / 1e6:.0f} MB")
        if config.out:
            Path(config.out).write_text(as_json(medians(measured), device, **settings) + "\n")
    rows = medians(measured)
    print(table(rows))
    if not config.out:
        print(as_json(rows, device, **settings))


def medians(measured: dict[tuple[str, str], list[dict]]) -> list[dict]:
    """Median seconds and memory of each stage and version with measurements."""
    return [
        {
            "stage": stage,
            "way": way,
            "seconds": statistics.median(second for run in runs for second in run["seconds"]),
            "memory": statistics.median(run["memory"] for run in runs),
        }
        for (stage, way), runs in measured.items()
        if runs
    ]


def table(rows: list[dict]) -> str:
    """A Markdown table with one line per stage; "-" for a version without a row."""
    found = {(row["stage"], row["way"]): row for row in rows}

    def cell(stage: str, way: str, quantity: str, unit: float, over: str | None = None) -> str:
        if (stage, way) not in found or (over and (stage, over) not in found):
            return "-"
        value = found[stage, way][quantity] / (found[stage, over][quantity] if over else unit)
        return f"{value:.0f}" if unit > 1 and not over else f"{value:.2f}"

    lines = [
        "| stage | textbook, s | fast, s | floor, s | textbook / fast | fast / floor | textbook, MB | fast, MB | floor, MB "
        "| memory, fast / textbook | memory, fast / floor |",
        "|" + "---|" * 11,
    ]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        cells = [cell(stage, way, "seconds", 1) for way in WAYS]
        cells += [cell(stage, "textbook", "seconds", 1, "fast"), cell(stage, "fast", "seconds", 1, "floor")]
        cells += [cell(stage, way, "memory", 1e6) for way in WAYS]
        cells += [cell(stage, "fast", "memory", 1e6, over) for over in ("textbook", "floor")]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(config: StepsConfig, stage: str, way: str) -> dict:
    """Measures one version in this process: seconds of each timed step, and peak memory in bytes."""
    device = distributed.pick_device(config.device)
    precision = "fp32" if way == "textbook" else distributed.pick_precision(device, config.precision)
    torch.manual_seed(0)
    method = make_method(config, stage).to(device)
    batch = make_batch(config.batch, config.crop, config.classes)
    if stage in CISC_R:
        more = make_batch(config.batch, config.crop, config.classes, seed=1)
        batch |= {"labelled": more, "partner": more | {"shared": torch.zeros(config.batch, dtype=torch.int64)}}
    if way != "textbook":
        method.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        pinned = {name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in batch.items()}
        batch = cast(Batch, pinned)
    optimizer = build_optimizer(method, TrainConfig(lr=1e-4))
    losses: dict[str, Callable[[Batch], torch.Tensor]] = {
        "textbook": lambda batch: torch.stack([*textbook.losses(method.network, method.config, batch).values()]).sum(),
        "fast": lambda batch: torch.stack([*method(batch).values()]).sum(),
        "floor": lambda batch: floor_of_cisc_r(method, batch) if stage in CISC_R else floor(method, batch["image"]),
    }

    def step() -> None:
        there = to_device(batch, device)
        if way == "textbook":
            there["image"] = there["image"].contiguous()
        with distributed.autocast(device, precision):
            loss = losses[way](there)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return repeat(step, config.steps, WARM, device)


def make_method(config: StepsConfig, stage: str) -> Any:
    """The method of a stage with random weights, in training mode, with a teacher if the stage has one."""
    name = "cisc_r" if stage in CISC_R else "cc4s"
    settings = yaml.safe_load((ROOT / f"configs/{name}/{stage}.yaml").read_text())["method"]
    if name == "cc4s":
        settings["view"] = "flip"  # the textbook's only view, and the slower one
    model = ModelConfig(config.backbone, "none", decoder=config.decoder)
    method, teacher = (build_method(SETTINGS[name](**settings), model, config.classes) for _ in range(2))
    if stage not in (*CISC_R, "baseline"):
        torch.nn.init.constant_(method.network.walk.gamma, 0.5)  # training starts with 0, which switches the walk off
    if "teacher" in method.reads:
        distributed.move_to_device(teacher, distributed.pick_device(config.device))
        method.begin_training(teacher.eval().requires_grad_(False))
    return method


def floor_of_cisc_r(method: Any, batch: Batch) -> torch.Tensor:
    """Runs student and teacher without losses. The mean of the logits replaces the loss."""
    if method.teacher is None:
        return method.network.coarse(torch.cat([batch["image"], batch["partner"]["image"]])).float().mean()
    logits = method.network.coarse(torch.cat([batch["image"], batch["labelled"]["image"]]))
    with torch.no_grad():
        method.teacher.network.feature(torch.cat([batch["image"], batch["partner"]["image"]]))
    return logits.float().mean()


def floor(method: Any, images: torch.Tensor) -> torch.Tensor:
    """Runs the network without walk and losses. The mean of the logits at stride 8 replaces the loss."""
    network, config = method.network, method.config
    if config.network == "baseline":
        return network.coarse(images).float().mean()
    encoded, finer = network.encode(images)
    logits = network.head(network.reduce(encoded), finer, images)
    if config.consistency:  # as in a real step, the activations of the pass with gradient are still in memory
        with torch.no_grad():
            network.features(images.flip(-1))
    return logits.float().mean()


def make_batch(images: int, crop: int, classes: int, seed: int = 0) -> Batch:
    """A batch as `collate` makes it: random images, 3% labelled pixels, a grid of superpixels with edges between neighbours."""
    generator = torch.Generator().manual_seed(seed)
    side = round(SUPERPIXELS**0.5)
    place = torch.arange(crop) * side // crop
    grid = (place[:, None] * side + place).int()
    nodes = torch.arange(side * side).view(side, side)
    right = torch.stack([nodes[:, :-1].flatten(), nodes[:, 1:].flatten()], dim=1)
    below = torch.stack([nodes[:-1].flatten(), nodes[1:].flatten()], dim=1)
    edges = torch.cat([right, below])
    label = torch.randint(classes, (images, crop, crop), generator=generator, dtype=torch.uint8)
    label[torch.rand(label.shape, generator=generator) > 0.03] = 255
    return {
        "image": torch.randint(256, (images, crop, crop, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2),
        "label": label,
        "boundary": torch.rand(label.shape, generator=generator) < 0.1,
        "superpixel": torch.stack([grid + number * side * side for number in range(images)]),
        "edges": torch.cat([edges + number * side * side for number in range(images)]),
        "edge_weights": torch.rand(images * len(edges), generator=generator),
        "superpixel_starts": [number * side * side for number in range(images + 1)],
        "edge_starts": [number * len(edges) for number in range(images + 1)],
    }


if __name__ == "__main__":
    run(main)
