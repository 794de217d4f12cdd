"""The interface between a method and the training loop."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from config import Config, MethodConfig
from datasets.batch import Batch


class Published(NamedTuple):
    """How the authors of a method saved its network. A method of your own does not need this.

    settings: state dict -> the method's settings. names: prefix of a published weight -> prefix in `network`, such as
    "conv5a." -> "reduce."; weights without such a prefix are not used. backbone: prefix of the ResNet's weights. classifier:
    the weight of the last layer; its first side is the number of classes. complete: adds weights to ours that the release
    lacks.
    """

    settings: Callable[[dict[str, torch.Tensor]], MethodConfig]
    names: dict[str, str]
    backbone: str
    classifier: str
    complete: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict


Reads = Literal["label", "tags", "strong", "boundary", "superpixel", "labelled", "partner", "teacher"]


class Method(nn.Module):
    """A network with what trains it.

    `forward` returns the same loss names at every step. Before a term begins, return `0 * loss`, not the constant 0: the
    weights must stay in the graph. Several processes, the curves and the reports of faults need this.
    """

    settings: type[MethodConfig]
    """the dataclass of the method's settings"""
    reads: frozenset[Reads] = frozenset({"label"})
    """what the method takes beside images: keys of `Batch`, and teacher. Missing superpixels are an error for superpixel (the
    map and its graph), but not for boundary"""
    published: dict[str, Published] = {}  # noqa: RUF012, read only
    """the name of a weight that only this published network has, by which a file is recognised -> how the network was saved"""
    fewest_images = 1
    """images that a training pass of all processes needs at least"""
    fewest_in_process = 1
    """images that a training pass of each process needs at least, for methods that mix images"""
    preset = "cc4s"
    """inference settings of the method's paper, configs/evaluate/NAME.yaml"""
    large_image = 4_000_000
    """pixels; predicting a larger image whole takes minutes"""
    grid: tuple[int, int] = (1, 0)
    """(unit, rest): sides of unit * k + rest pixels fit the network's maps; `engine.inference.on_grid` pads images to them"""
    classifies = False
    """whether the network also classifies images; then the method has `predict_and_classify`"""
    takes_decoder = False
    """whether the network has the choice of `--model.decoder`"""
    network: Any
    """an nn.Module whose `backbone` takes pretrained weights"""
    classes: tuple[str, ...]
    """class names in id order, of a method that `engine.checkpoint.load_model` returned"""
    teacher: "Method | None" = None
    """a trained method, in evaluation mode and without gradients, for a method that reads a teacher"""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named scalar losses, already weighted. Training minimises their sum."""
        raise NotImplementedError

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) float32 normalised -> logits (B, C, H, W) float32. Less exact if sides do not fit `grid`."""
        raise NotImplementedError

    def predict_and_classify(self, images: torch.Tensor, nearest: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of `predict`, resized by nearest neighbour if `nearest`; and activations (B, C - 1, h, w) float32 of all
        classes but the first, whose spatial means are the logits of an image's tags."""
        raise NotImplementedError

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        """The weights at which `engine.inspection` measures the gradient of each loss term, by the part's name."""
        return {"backbone": self.network.backbone.parameters()}

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named scalars that describe the state of the network. `engine.inspection` calls this in training mode, without
        gradient, on all processes; all return the same names. The batch has `truth`."""
        return {}

    def pictures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What to show beside each image, by caption: (B, H, W) class ids (uint8 or int64, 255 = none), numbers from 0 to 1
        (float, drawn from dark to yellow) or errors (bool, drawn red); or normalised images (B, 3, H, W). `engine.inspection`
        calls this in evaluation mode, without gradient, on the main process alone. The batch has `truth`."""
        return {}

    def check_settings(self, config: Config, steps: int, epochs: float) -> None:
        """Called before training, which takes so many steps and epochs. Raises UserError if these settings cannot work."""

    def begin_training(self, teacher: "Method | None") -> None:
        """Called once before the first step, when the network has its first weights; an average of weights starts here. A run
        that resumes loads its saved weights afterwards. An overriding method calls super()."""
        # Not an attribute that nn.Module sees: the teacher stays out of train(), the state dict, the optimizer and DDP.
        self.__dict__["teacher"] = teacher

    def begin_step(self, step: int, epoch: float) -> None:
        """Called before a step's forward passes; for schedules inside a method."""

    def after_step(self) -> None:
        """Called after the optimizer's step; averages of weights are updated here."""
