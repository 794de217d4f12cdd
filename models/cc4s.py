"""The two networks of CC4S: the baseline with its ASPP head, and the random-walk network."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from config import ModelConfig
from errors import UserError
from models.decoders import LowLevelDecoder, UNetDecoder
from models.encoder import StrideEightNet
from models.layers import ASPP, conv_bn_relu
from models.random_walk import RandomWalk
from models.resnet import ResNet, stride8_resnet

FINEST = {"none": 8, "lowlevel": 4, "unet": 2}  # stride of the finest map that a decoder takes


class DecodedNet(StrideEightNet):
    """A stride-8 encoder and a decoder. The two networks below add a head between them."""

    def __init__(self, model: ModelConfig, head: int, held_resnet: Callable[[str, int], ResNet] = stride8_resnet):
        """head: channels that the head gives to the decoder. Raises UserError for a decoder that the encoder has no map for."""
        super().__init__(model, FINEST[model.decoder], held_resnet)
        self.decoder: LowLevelDecoder | UNetDecoder | None = None
        if model.decoder != "none" and not self.finer:
            raise UserError(f"--model.decoder {model.decoder}: {model.backbone} has no map of stride 4; choose none")
        if model.decoder != "none":
            self.decoder = (LowLevelDecoder if model.decoder == "lowlevel" else UNetDecoder)(head, self.finer)

    def from_encoded(self, encoded: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        """The maps of `encode`, and the images for a decoder -> logits (B, C, h, w)."""
        raise NotImplementedError

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        return self.from_encoded(*self.encode(images), images)

    def decode(self, features: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        """The head's features (B, `head`, h, w) -> finer ones with a decoder, else the same."""
        return features if self.decoder is None else self.decoder(features, finer, images)


class RandomWalkNet(DecodedNet):
    """Stride-8 encoder -> 3x3 conv to 512 -> random walk -> 3x3 conv 512 -> decoder -> dropout 0.1 -> 1x1 to the classes.

    The parts (`features`, `walk`, `head`) can be called one by one by a loss that looks inside.
    """

    def __init__(self, model: ModelConfig, num_classes: int, shrink: int = 1, scaled: bool = False):
        """shrink, scaled: see `RandomWalk`."""
        super().__init__(model, 512)
        self.reduce = conv_bn_relu(self.width, 512, 3)
        self.walk = RandomWalk(512, shrink, scaled)
        self.refine = conv_bn_relu(512, 512, 3)
        width = 512 if self.decoder is None else self.decoder.width
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> the map (B, 512, h, w) that the walk starts from (`x` in the paper)."""
        return self.reduce(self.encode(images)[0])

    def head(
        self, walked: torch.Tensor, finer: Sequence[torch.Tensor] = (), images: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, 512, h, w) after the walk (`z`) -> logits (B, C, h, w). A decoder also needs the images and their finer maps."""
        return self.classifier(self.decode(self.refine(walked), finer, images))

    def from_encoded(self, encoded: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        walked, _, _ = self.walk(self.reduce(encoded))
        return self.head(walked, finer, images)


class BaselineNet(DecodedNet):
    """Stride-8 encoder (a held ResNet with dilations 4, 8, 16 in `layer4`) and an ASPP head.

    As published, the head has a channel for each class. With a decoder it has 256 channels, and a 1x1 convolution follows.
    """

    def __init__(self, model: ModelConfig, num_classes: int):
        super().__init__(model, 256, partial(stride8_resnet, layer4_dilations=(4, 8, 16)))
        outputs = num_classes if self.decoder is None else 256
        project = nn.Sequential(nn.Conv2d(5 * outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.aspp = ASPP(self.width, outputs, (12, 18, 24), project)
        self.classifier = None if self.decoder is None else nn.Conv2d(self.decoder.width, num_classes, 1)

    def from_encoded(self, encoded: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        decoded = self.decode(self.aspp(encoded), finer, images)
        return decoded if self.classifier is None else self.classifier(decoded)


class TwoHeadedNet(BaselineNet):
    """The baseline's network with a second ASPP head and decoder, which see the encoder's maps with half of the channels
    dropped, as in DMPLS (Luo et al., MICCAI 2022). The first head predicts."""

    def __init__(self, model: ModelConfig, num_classes: int):
        super().__init__(model, num_classes)
        other = BaselineNet(model, num_classes)
        del other.backbone  # the second head has no encoder of its own
        other.fused = None
        self.other = other
        self.dropout = nn.Dropout2d(0.5)

    def both_heads(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> logits (B, C, h, w) of the first and of the second head."""
        encoded, finer = self.encode(images)
        dropped = self.dropout(encoded), [self.dropout(maps) for maps in finer]
        return self.from_encoded(encoded, finer, images), self.other.from_encoded(*dropped, images)
