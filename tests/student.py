"""A test method for the interface in methods/base.py: images with tags but without labels, a few labelled
images, a teacher, an average of the weights, and a loss term that starts late.

    python tests/student.py --config FILE ...          train.py with the method `student`

With STUDENT_KILL=N the process kills itself before step N (counted from 0).
"""

import os
import signal
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from steady import steady_method
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import methods
import train
from config import Config, MethodConfig, ModelConfig
from datasets.batch import Batch
from engine import preparation
from errors import UserError, run
from losses.partial_cross_entropy import partial_cross_entropy
from methods.base import Method
from models.cc4s import RandomWalkNet
from ops.resizing import upsample


@dataclass
class StudentConfig(MethodConfig):
    """A student of a trained network."""

    name: str = "student"
    """the method"""
    teacher_from: NonNegativeInt = 2
    """step at which the student begins to imitate the teacher"""
    decay: NonNegativeFloat = 0.5
    """decay of the average of the weights"""


class Student(Method):
    """Trains with cross-entropy on labelled images, and with tags and the teacher's predictions on unlabelled images."""

    settings = StudentConfig
    reads = frozenset({"tags", "labelled", "teacher"})
    network: RandomWalkNet

    def __init__(self, config: StudentConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.network = RandomWalkNet(model, num_classes)
        average = get_ema_multi_avg_fn(config.decay)
        self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
        self.imitates = False

    def check_settings(self, config: Config, steps: int, epochs: float) -> None:
        if self.config.teacher_from >= steps:
            raise UserError(f"method.teacher_from is {self.config.teacher_from}, but training ends after {steps} steps")

    def begin_training(self, teacher: Method | None) -> None:
        super().begin_training(teacher)
        self.average.update_parameters(self.network)  # the first update is a copy

    def begin_step(self, step: int, epoch: float) -> None:
        if os.environ.get("STUDENT_KILL") == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        self.imitates = step >= self.config.teacher_from

    def after_step(self) -> None:
        self.average.update_parameters(self.network)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        assert "label" not in batch, "the training images have no labels"
        images, labelled = batch["image"], batch["labelled"]
        logits = self.network.coarse(torch.cat([images, labelled["image"]]))
        unlabelled_logits, labelled_logits = logits.split((len(images), len(labelled["image"])))
        with torch.no_grad():
            target = F.interpolate(self.teacher.predict(images), unlabelled_logits.shape[-2:]).softmax(dim=1)
        imitation = F.kl_div(unlabelled_logits.log_softmax(dim=1), target, reduction="batchmean")
        tags = F.binary_cross_entropy_with_logits(unlabelled_logits.mean(dim=(2, 3))[:, 1:], batch["tags"])
        return {
            "cross_entropy": partial_cross_entropy(upsample(labelled_logits, labelled["label"].shape[-2:]), labelled["label"]),
            "tags": 0.1 * tags,
            "teacher": float(self.imitates) * 0.01 * imitation,
        }

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.average.module(images)


def register() -> None:
    """Makes the method known to train.py."""
    methods.METHODS["student"] = Student
    methods.SETTINGS["student"] = StudentConfig


def main() -> None:
    """Runs train.py with the method `student`. The first argument `steady` freezes batch norm and dropout (see steady.py)."""
    register()
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["steady"]:
        del sys.argv[1]
        preparation.build_method = steady_method
    run(train.main)


if __name__ == "__main__":
    main()
