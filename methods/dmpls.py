"""DMPLS (Luo et al., MICCAI 2022), a peer of CC4S on scribbles: two decoders on one encoder, and the labels of their mixed
predictions."""

import random
from dataclasses import dataclass

import torch
from jsonargparse.typing import NonNegativeFloat

from config import MethodConfig, ModelConfig
from datasets.batch import Batch
from losses.dice import dice_loss
from losses.partial_cross_entropy import coarse_cross_entropy
from methods.base import Method
from models.cc4s import TwoHeadedNet
from ops.resizing import at_positions


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
        """The mean cross-entropy of both heads; and the mean Dice loss of both with the pseudo-labels, at the stride of the
        logits."""
        heads = self.network.both_heads(batch["image"])
        inside = at_positions(~batch["outside"], heads[0].shape[-2:])
        share = random.random()  # the same in all processes
        with torch.autocast(inside.device.type, enabled=False):
            first, second = (logits.float().softmax(dim=1) for logits in heads)
            mixed = (share * first + (1 - share) * second).detach().max(dim=1).indices
            pseudo_labels = torch.stack([dice_loss(one, mixed, inside) for one in (first, second)]).mean()
        return {
            "cross_entropy": torch.stack([coarse_cross_entropy(logits, batch["label"]) for logits in heads]).mean(),
            "pseudo_labels": self.config.pseudo_labels * pseudo_labels,
        }

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)
