"""The interface between a method and the training loop."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from config import Config, MethodConfig


class Published(NamedTuple):
    """How the authors of a method saved its network.

    settings: those of the method, from the file's weights by name. names: the published prefix of a weight's name -> ours in
    `network`; a weight without a prefix here is not used. backbone: the prefix of the ResNet's weights. classifier: the weight
    of the last layer, whose first side is the number of classes.
    """

    settings: Callable[[dict[str, torch.Tensor]], MethodConfig]
    names: dict[str, str]
    backbone: str
    classifier: str


class Method(nn.Module):
    """A network with what trains it.

    settings: the dataclass of its configuration section. reads: the parts of a batch that the method asks for besides images
    and labels: "boundary" (where the data have superpixels), "superpixel" (the map and its graph; an error where missing).
    fewest_images: what a training pass needs at least. preset: the evaluation's settings in its paper, of configs/evaluate.
    large_image: pixels of an image above which a prediction of the whole image would take minutes. classes: class names in id
    order, of a method that `engine.checkpoint.load_model` returned. published: a weight that tells a published network from
    others -> how that network was saved. `network.backbone` takes pretrained weights.
    """

    settings: type[MethodConfig]
    published: dict[str, Published] = {}  # noqa: RUF012, read only
    reads: frozenset[str] = frozenset()
    fewest_images = 1
    preset = "paper"
    large_image = 4_000_000
    network: nn.Module
    classes: tuple[str, ...]

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch, as `datasets.segmentation.to_device` gives it -> named scalar losses, already weighted, whose sum is
        minimised."""
        raise NotImplementedError

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) float32 normalised -> logits (B, C, H, W) float32."""
        raise NotImplementedError

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        """The weights at which `engine.inspection` measures the gradient of each loss term, by the part's name."""
        return {"backbone": self.network.backbone.parameters()}

    def figures(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named scalars that tell of the network. `engine.inspection` calls this in training mode, without gradient, on all
        processes, which return the same names. batch: as `forward` takes it, with `truth` (B, H, W) uint8, the dense masks, 255
        where there is none."""
        return {}

    def check_settings(self, config: Config, steps: int) -> None:
        """Raises UserError if a run of so many steps with these settings is not possible; called before training."""

    def begin_step(self, step: int, epoch: float) -> None:
        """Called before a step's forward passes; for schedules inside a method."""

    def after_step(self) -> None:
        """Called after the optimizer's step; for averaged weights and teachers."""
