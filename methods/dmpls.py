"""DMPLS (Luo et al., MICCAI 2022), a peer of CC4S on scribbles: two decoders on one encoder, and the labels of their mixed
predictions."""

import random
from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeFloat

from config import MethodConfig, ModelConfig
from datasets.batch import Batch
from losses.dice import dice_loss
from losses.partial_cross_entropy import IGNORE_INDEX, partial_cross_entropy
from methods.base import Method
from models.cc4s import TwoHeadedNet
from ops.pixelwise import pixelwise


@dataclass
class DMPLSConfig(MethodConfig):
    """DMPLS: the weight of its pseudo-labels."""

    name: str = "dmpls"
    """the method"""
    pseudo_labels: NonNegativeFloat = 0.5
    """weight of the Dice losses with the mixed pseudo-labels"""


class DMPLS(Method):
    """A network with two heads. Each learns the scribbles, and the labels of a random mean of both predictions."""

    settings = DMPLSConfig
    takes_decoder = True
    preset = "fast"
    fewest_images = 2  # batch norm over the pooled features needs two images
    network: TwoHeadedNet

    def __init__(self, config: DMPLSConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.network = TwoHeadedNet(model, num_classes)
        self.grid = (self.network.unit, 1)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The mean cross-entropy of both heads, and the mean Dice loss of both with the pseudo-labels."""
        images, label, inside = batch["image"], batch["label"], ~batch["outside"]
        share = random.random()  # the same in all processes

        def cross_entropy(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
            terms = [partial_cross_entropy(one, label[some]) for one in logits.chunk(2, dim=1)]
            return torch.stack(terms).mean(), (label[some] != IGNORE_INDEX).sum()

        def pseudo_labels(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = (one.softmax(dim=1) for one in logits.chunk(2, dim=1))
            mixed = (share * first + (1 - share) * second).detach().max(dim=1).indices
            terms = [dice_loss(one, mixed, inside[some]) for one in (first, second)]
            return torch.stack(terms).mean(), inside[some].sum()

        both = torch.cat(self.network.both(images), dim=1)
        losses = pixelwise({"cross_entropy": cross_entropy, "pseudo_labels": pseudo_labels}, both, images.shape[-2:])
        return losses | {"pseudo_labels": self.config.pseudo_labels * losses["pseudo_labels"]}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)
