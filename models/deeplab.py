"""DeepLabv3+, PSPNet and DeepLabv2 as CISC-R has them: each gives logits and the feature map before its classifier."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from config import ModelConfig
from errors import UserError
from models.encoder import StrideEightNet
from models.layers import ASPP, conv_bn_relu
from models.resnet import deeplab_resnet
from models.upernet import MeanOfParts
from ops.resizing import resize


class FeatureNet(StrideEightNet):
    """A network whose images can be compared by their feature maps."""

    classifier: nn.Module

    def combine(self, features: torch.Tensor, finer: Sequence[torch.Tensor]) -> torch.Tensor:
        """The maps of `encode` -> the feature map (B, D, h, w)."""
        raise NotImplementedError

    def classify(self, feature: torch.Tensor) -> torch.Tensor:
        """The feature map -> logits (B, C, h, w)."""
        return self.classifier(feature)

    def feature(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> the feature map (B, D, h, w)."""
        return self.combine(*self.encode(images))

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.feature(images))


class DeepLabV3Plus(FeatureNet):
    """ASPP with rates 12, 24, 36 on the stride-8 features; fused with the encoder's map of stride 4 by two 3x3 convolutions
    (Chen et al., ECCV 2018). The feature (256 channels, stride 4) is not negative."""

    def __init__(self, model: ModelConfig, num_classes: int):
        """Raises UserError if the encoder has no map of stride 4."""
        super().__init__(model, 4, deeplab_resnet)
        if not self.finer:
            raise UserError(f"{model.backbone} has no map of stride 4: choose --method.network pspnet or deeplabv2")
        self.aspp = ASPP(self.width, 256, (12, 24, 36), nn.Sequential(*conv_bn_relu(5 * 256, 256, 1), nn.Dropout2d(0.5)))
        self.reduce = conv_bn_relu(self.finer[-1], 48, 1)
        self.fuse = nn.Sequential(*conv_bn_relu(256 + 48, 256, 3), *conv_bn_relu(256, 256, 3), nn.Dropout(0.1))
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def combine(self, features: torch.Tensor, finer: Sequence[torch.Tensor]) -> torch.Tensor:
        low = self.reduce(finer[-1])
        return self.fuse(torch.cat([low, resize(self.aspp(features), low.shape[-2:], align_corners=True)], dim=1))


class PSPNet(FeatureNet):
    """Means over 1x1, 2x2, 3x3 and 6x6 parts of the stride-8 features, each a quarter as wide, concatenated with the features;
    then a 3x3 convolution (Zhao et al., CVPR 2017). The feature (512 channels on a ResNet-50, stride 8) is not negative."""

    def __init__(self, model: ModelConfig, num_classes: int):
        super().__init__(model, 8, deeplab_resnet)
        width = self.width // 4
        self.pools = nn.ModuleList(
            nn.Sequential(MeanOfParts(parts), *conv_bn_relu(self.width, width, 1)) for parts in (1, 2, 3, 6)
        )
        self.fuse = conv_bn_relu(2 * self.width, width, 3)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))

    def combine(self, features: torch.Tensor, finer: Sequence[torch.Tensor]) -> torch.Tensor:
        pooled = [resize(pool(features), features.shape[-2:], align_corners=True) for pool in self.pools]
        return self.fuse(torch.cat([features, *pooled], dim=1))


class DeepLabV2(FeatureNet):
    """The sum of four dilated 3x3 classifiers on the stride-8 features, which are the feature map (Chen et al., TPAMI 2018)."""

    def __init__(self, model: ModelConfig, num_classes: int):
        super().__init__(model, 8, deeplab_resnet)
        convolutions = [nn.Conv2d(self.width, num_classes, 3, padding=rate, dilation=rate) for rate in (6, 12, 18, 24)]
        for convolution in convolutions:
            nn.init.normal_(convolution.weight, std=0.01)
        self.classifier = nn.ModuleList(convolutions)

    def combine(self, features: torch.Tensor, finer: Sequence[torch.Tensor]) -> torch.Tensor:
        return features

    def classify(self, feature: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.classifier, nn.ModuleList)
        first, *others = (convolution(feature) for convolution in self.classifier)
        return sum(others, first)


NETWORKS: dict[str, Callable[[ModelConfig, int], FeatureNet]] = {
    "deeplabv3plus": DeepLabV3Plus,
    "pspnet": PSPNet,
    "deeplabv2": DeepLabV2,
}
