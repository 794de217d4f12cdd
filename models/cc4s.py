"""The two networks of CC4S: the baseline with its ASPP head, and the random-walk network."""

import torch
from torch import nn

from models.layers import conv_bn_relu
from models.random_walk import RandomWalk
from models.resnet import channels, stride8_resnet
from ops.resizing import upsample


class RandomWalkNet(nn.Module):
    """Stride-8 ResNet -> 3x3 conv to 512 -> random walk -> 3x3 conv 512 -> dropout 0.1 -> 1x1 to the classes.

    forward: images (B, 3, H, W) -> logits (B, C, H, W) at the input's size. The parts (`features`, `walk`, `head`) can be
    called one by one by a loss that looks inside, and `coarse` stops before the logits are up-sampled.
    """

    def __init__(self, backbone: str, num_classes: int, shrink: int = 1):
        super().__init__()
        self.backbone = stride8_resnet(backbone)
        self.reduce = conv_bn_relu(channels(self.backbone.get_submodule("layer4")), 512, 3)
        self.walk = RandomWalk(512, shrink)
        self.refine = conv_bn_relu(512, 512, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(512, num_classes, 1))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 512, h, w): the map that the walk starts from (`x` in the paper)."""
        return self.reduce(self.backbone(images))

    def head(self, walked: torch.Tensor) -> torch.Tensor:
        """(B, 512, h, w) after the walk (`z`) -> (B, C, h, w) logits at stride 8."""
        return self.classifier(self.refine(walked))

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, h, w) logits at stride 8."""
        walked, _, _ = self.walk(self.features(images))
        return self.head(walked)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return upsample(self.coarse(images), images.shape[-2:])


class BaselineNet(nn.Module):
    """Stride-8 ResNet (dilations 4, 8, 16 in `layer4`) and an ASPP head whose branches are already as wide as the classes.

    forward: images (B, 3, H, W) -> logits (B, C, H, W) at the input's size.
    """

    def __init__(self, backbone: str, num_classes: int):
        super().__init__()
        self.backbone = stride8_resnet(backbone, layer4_dilations=(4, 8, 16))
        self.aspp = ASPP(channels(self.backbone.get_submodule("layer4")), num_classes)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, h, w) logits at stride 8."""
        return self.aspp(self.backbone(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return upsample(self.coarse(images), images.shape[-2:])


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
