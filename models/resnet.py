"""torchvision's ResNets, made stride 8 or given a deep stem, under the state-dict names of published weights."""

from collections import OrderedDict

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from models.layers import conv_bn_relu

STRIDE = 8
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

# GluonCV's ImageNet weights of ResNets with this deep stem, as converted for timm (resnet50s.gluon_in1k and so on).
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1"
DEEP_STEM_WEIGHTS = {
    "resnet50": f"{_GLUON}/gluon_resnet50_v1s-1762acc0.pth",
    "resnet101": f"{_GLUON}/gluon_resnet101_v1s-60fe0cc1.pth",
    "resnet152": f"{_GLUON}/gluon_resnet152_v1s-dcc41b81.pth",
}


class Encoder(nn.Module):
    """Images (B, 3, H, W), normalised by ImageNet's mean and deviation -> a list of maps, finest first. A map of stride s is
    (B, width, ceil(H / s), ceil(W / s))."""

    strides: tuple[int, ...]
    """strides of the maps"""
    widths: tuple[int, ...]
    """channels of the maps"""


class ResNet(nn.Sequential, Encoder):
    """A torchvision ResNet's modules without pooling and classifier, as an encoder."""

    def __init__(self, resnet: nn.Module, strides: dict[str, int]):
        """strides: of the maps to return, by the name of the module that makes them."""
        super().__init__(OrderedDict((k, m) for k, m in resnet.named_children() if k not in ("avgpool", "fc")))
        self.returned = tuple(strides)
        self.strides = tuple(strides.values())
        self.widths = tuple(64 if name == "relu" else channels(self.get_submodule(name)) for name in strides)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, 3, H, W) -> maps, finest first."""
        maps = []
        for name, module in self.named_children():
            images = module(images)
            if name in self.returned:
                maps.append(images)
        return maps


def natural_resnet(name: str, finest: int) -> ResNet:
    """torchvision's ResNet `name` at its own strides: maps of strides `finest` (2, 4 or 8) to 32."""
    strides = {"relu": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
    resnet = getattr(torchvision.models, name)(weights=None)
    return ResNet(resnet, {key: stride for key, stride in strides.items() if stride >= finest})


def stride8_resnet(name: str, finest: int = 8, layer4_dilations: tuple[int, ...] = (4,)) -> ResNet:
    """torchvision's ResNet `name` held at stride 8: maps of strides `finest` (2, 4 or 8) to 8, one a stride. Position i of the
    last map looks at pixel 8 i.

    `layer3` and `layer4` keep stride 1 and are dilated instead: 2, and `layer4_dilations` block by block (its last
    value for the blocks beyond), the first block included. As in the released CC4S, a bottleneck strides on its 1x1
    convolution, and a basic block (ResNet-18 and 34) dilates its second convolution alone.
    """
    resnet = getattr(torchvision.models, name)(weights=None)
    resnet.maxpool.ceil_mode = True
    _dilate(resnet.layer3, (2,))
    _dilate(resnet.layer4, layer4_dilations)
    first = resnet.layer2[0]
    if isinstance(first, Bottleneck):
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    return ResNet(resnet, _strides_to_8(finest))


def deeplab_resnet(name: str, finest: int = 8) -> ResNet:
    """torchvision's ResNet `name` held at stride 8 as by torchvision's `replace_stride_with_dilation`: the first block of
    `layer3` and of `layer4` keeps the dilation of the stage before (1 and 2), the other blocks have 2 and 4. Maps as from
    `stride8_resnet`. ResNet-18 and 34, which torchvision does not dilate, dilate the second convolution of a block alone."""
    resnet = getattr(torchvision.models, name)(weights=None)
    _dilate(resnet.layer3, (1, 2))
    _dilate(resnet.layer4, (2, 4))
    return ResNet(resnet, _strides_to_8(finest))


def stride16_resnet(name: str, finest: int = 4) -> ResNet:
    """torchvision's ResNet `name` whose `layer4` keeps stride 16 without dilation, as in RecurSeed: the maps of its stages, of
    strides `finest` (4 or 8) to 16; the last two have stride 16."""
    resnet = getattr(torchvision.models, name)(weights=None)
    _dilate(resnet.layer4, (1,))
    strides = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 16}
    return ResNet(resnet, {key: stride for key, stride in strides.items() if stride >= finest})


def _strides_to_8(finest: int) -> dict[str, int]:
    return {key: stride for key, stride in {"relu": 2, "layer1": 4, "layer4": 8}.items() if stride >= finest}


def _dilate(layer: nn.Sequential, dilations: tuple[int, ...]) -> None:
    for number, block in enumerate(layer):
        dilation = dilations[min(number, len(dilations) - 1)]
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if name == "conv2":  # of a bottleneck, the only 3x3
                    module.dilation = module.padding = (dilation, dilation)


def deep_stem_resnet(name: str) -> ResNet:
    """torchvision's ResNet `name`, its first convolution replaced by three 3x3 convolutions (64, 64 and 128 wide, the first of
    stride 2), as in BLPSeg: maps of strides 4, 8, 16 and 32."""
    resnet = getattr(torchvision.models, name)(weights=None)
    resnet.conv1 = nn.Sequential(
        *conv_bn_relu(3, 64, 3, stride=2), *conv_bn_relu(64, 64, 3), nn.Conv2d(64, 128, 3, 1, 1, bias=False)
    )
    resnet.bn1 = nn.BatchNorm2d(128)
    resnet.inplanes = 128  # what layer1 sees, which then needs a convolution beside its first block
    resnet.layer1 = resnet._make_layer(type(resnet.layer1[0]), 64, len(resnet.layer1))
    for module in [*resnet.conv1, *resnet.layer1.modules()]:
        if isinstance(module, nn.Conv2d):  # as torchvision starts the others
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return ResNet(resnet, {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32})


def channels(layer: nn.Module) -> int:
    """The width of a stage's output: of `layer4`, 512 for ResNet-18 and 34, 2048 for the deeper ones."""
    return [module.out_channels for name, module in layer.named_modules() if name.endswith((".conv2", ".conv3"))][-1]
