"""Finds non-finite losses and weights before they are saved. The error names the step, the loss terms and the images."""

import torch

from config import TrainConfig
from datasets.segmentation import SegmentationDataset
from engine.distributed import Process
from engine.loading import training_order
from errors import Failure
from methods.base import Method


class FiniteCheck:
    """Keeps the loss terms since the last check. The terms stay on the device, so that no step waits for the device."""

    def __init__(self, train_set: SegmentationDataset, settings: TrainConfig, process: Process):
        self.train_set, self.settings, self.process = train_set, settings, process
        self.steps: list[tuple[int, dict[str, torch.Tensor]]] = []

    def add(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Keeps the terms of a step (counted from 0)."""
        self.steps.append((step, losses))

    def check(self) -> None:
        """Raises Failure if a kept term is not finite, else drops all kept terms."""
        for step, losses in self.steps:
            if not all_finite(losses):
                self.fail(step, losses)
        self.steps.clear()

    def fail(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        """Raises Failure for a step with a non-finite term."""
        terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        order = training_order(len(self.train_set), self.settings, step + 1, step, self.process)
        sources = (source for batch in order for key in batch for source in self.train_set.sources(key))
        images = ", ".join(index.names[position] for index, position in sources)
        raise Failure(
            f"the loss is not finite at step {step + 1} ({terms}; images {images}); the last checkpoint is from an "
            "earlier step: skip such steps by --skip-nonfinite NUMBER, or start over by --fresh with a lower --train.lr or "
            "another --train.precision"
        )


def all_finite(losses: dict[str, torch.Tensor]) -> bool:
    """Whether every term is finite. Waits for the device."""
    return bool(torch.stack(list(losses.values())).isfinite().all())


def require_finite_weights(method: Method, step: int) -> None:
    """Raises Failure if a weight is not finite after `step` steps. A finite loss can still have a non-finite gradient."""
    if not torch.stack([weight.isfinite().all() for weight in method.parameters()]).all():
        raise Failure(
            f"the weights are not finite after step {step}; the last checkpoint is from an earlier step: start over by "
            "--fresh with a lower --train.lr or another --train.precision"
        )
