"""The two networks of CC4S: the baseline with its ASPP head, and the random-walk network."""

from collections.abc import Sequence

import torch
from torch import nn

from config import ModelConfig
from errors import UserError
from models.decoders import LowLevelDecoder, UNetDecoder
from models.encoder import TIMM, FusedMaps, build_encoder
from models.layers import conv_bn_relu
from models.random_walk import RandomWalk
from ops.resizing import upsample

FUSED = 256  # channels of the fused maps
FINEST = {"none": 8, "lowlevel": 4, "unet": 2}  # stride of the finest map that a decoder takes


class StrideEightNet(nn.Module):
    """An encoder brought to stride 8, and a decoder. The two networks below add a head between them.

    ResNets are held at stride 8 by dilation, as published. The maps of other encoders are fused at stride 8. `model.maps`
    overrides this.
    """

    def __init__(self, model: ModelConfig, head: int, last_dilations: tuple[int, ...] = (4,)):
        """head: channels that the head gives to the decoder. last_dilations: of a held ResNet's layer4. Raises UserError for a
        decoder that the encoder has no map for."""
        super().__init__()
        fuses = model.maps == "fused" or (model.maps == "auto" and model.backbone.startswith(TIMM))
        self.backbone = build_encoder(model.backbone, FINEST[model.decoder], None if fuses else 8, last_dilations)
        self.fused = FusedMaps(self.backbone, FUSED, 8) if fuses else None
        self.width = FUSED if fuses else self.backbone.widths[-1]
        finer = [width for width, stride in zip(self.backbone.widths, self.backbone.strides, strict=True) if stride < 8]
        self.finer = len(finer)
        self.decoder: LowLevelDecoder | UNetDecoder | None = None
        if model.decoder != "none" and not finer:
            raise UserError(f"--model.decoder {model.decoder}: {model.backbone} has no map of stride 4; choose none")
        if model.decoder != "none":
            self.decoder = (LowLevelDecoder if model.decoder == "lowlevel" else UNetDecoder)(head, finer)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, 3, H, W) -> features (B, `width`, h, w) at stride 8; the encoder's finer maps, for `decode`."""
        maps = self.backbone(images)
        features = maps[-1] if self.fused is None else self.fused(maps, images.shape[-2:])
        return features, maps[: self.finer]

    def decode(self, features: torch.Tensor, finer: Sequence[torch.Tensor], images: torch.Tensor | None) -> torch.Tensor:
        """The head's features (B, `head`, h, w) -> finer ones with a decoder, else the same."""
        return features if self.decoder is None else self.decoder(features, finer, images)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C, h, w), at stride 8 without a decoder."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C, H, W)."""
        return upsample(self.coarse(images), images.shape[-2:])


class RandomWalkNet(StrideEightNet):
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

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        encoded, finer = self.encode(images)
        walked, _, _ = self.walk(self.reduce(encoded))
        return self.head(walked, finer, images)


class BaselineNet(StrideEightNet):
    """Stride-8 encoder (a held ResNet with dilations 4, 8, 16 in `layer4`) and an ASPP head.

    As published, the head has a channel for each class. With a decoder it has 256 channels, and a 1x1 convolution follows.
    """

    def __init__(self, model: ModelConfig, num_classes: int):
        super().__init__(model, 256, last_dilations=(4, 8, 16))
        self.aspp = ASPP(self.width, num_classes if self.decoder is None else 256)
        self.classifier = None if self.decoder is None else nn.Conv2d(self.decoder.width, num_classes, 1)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        features, finer = self.encode(images)
        decoded = self.decode(self.aspp(features), finer, images)
        return decoded if self.classifier is None else self.classifier(decoded)


class ASPP(nn.Module):
    """Atrous spatial pyramid: 1x1, 3x3 at rates 12, 18, 24 and global pooling, each `outputs` wide; 1x1 over all five."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, outputs, 1), *(conv_bn_relu(inputs, outputs, 3, rate) for rate in (12, 18, 24))]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs, 1))
        self.project = nn.Sequential(nn.Conv2d(5 * outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> (B, C, h, w) logits."""
        pooled = self.pooled(features).expand(-1, -1, *features.shape[-2:])
        return self.project(torch.cat([*(branch(features) for branch in self.branches), pooled], dim=1))
