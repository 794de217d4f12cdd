"""torchvision's ResNets, made stride 8 or given a deep stem, under the state-dict names of published weights."""

import http.client
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from errors import UserError
from models.layers import conv_bn_relu

STRIDE = 8

# GluonCV's ImageNet weights of ResNets with this deep stem, as converted for timm (resnet50s.gluon_in1k and so on).
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1"
DEEP_STEM_WEIGHTS = {
    "resnet50": f"{_GLUON}/gluon_resnet50_v1s-1762acc0.pth",
    "resnet101": f"{_GLUON}/gluon_resnet101_v1s-60fe0cc1.pth",
    "resnet152": f"{_GLUON}/gluon_resnet152_v1s-dcc41b81.pth",
}


def stride8_resnet(name: str, layer4_dilations: tuple[int, ...] = (4,)) -> nn.Sequential:
    """torchvision's ResNet `name` without pooling and classifier: (B, 3, H, W) -> (B, D, h, w),
    D = `channels(net.layer4)`. Position i looks at pixel 8 i; h is k + 1 for H = 8 k + 1, and at most one more otherwise.

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
    return nn.Sequential(OrderedDict((k, m) for k, m in resnet.named_children() if k not in ("avgpool", "fc")))


def _dilate(layer: nn.Sequential, dilations: tuple[int, ...]) -> None:
    for number, block in enumerate(layer):
        dilation = dilations[min(number, len(dilations) - 1)]
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if name == "conv2":  # of a bottleneck, the only 3x3
                    module.dilation = module.padding = (dilation, dilation)


class Pyramid(nn.Sequential):
    """A ResNet's modules: images (B, 3, H, W) -> the outputs of `layer1` to `layer4`."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for name, module in self.named_children():
            images = module(images)
            if name.startswith("layer"):
                maps.append(images)
        return maps


def deep_stem_resnet(name: str) -> Pyramid:
    """torchvision's ResNet `name`, its first convolution made three of 3x3 (64, 64 and 128 wide, the first of stride 2), as
    BLPSeg has it: (B, 3, H, W) -> four maps of strides 4, 8, 16, 32, each ceil(H / stride) high, `channels(net.layer1)` ...
    wide."""
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
    return Pyramid(OrderedDict((k, m) for k, m in resnet.named_children() if k not in ("avgpool", "fc")))


def channels(layer: nn.Module) -> int:
    """The width of a stage's output: of `layer4`, 512 for ResNet-18 and 34, 2048 for the deeper ones."""
    return [module.out_channels for name, module in layer.named_modules() if name.endswith((".conv2", ".conv3"))][-1]


def load_backbone(resnet: nn.Sequential, name: str, weights: str) -> None:
    """Fills `resnet`: weights is "none", "imagenet", one of torchvision's names for it (such as IMAGENET1K_V1), or the path of
    a file with a state dict under its names.

    "imagenet" is IMAGENET1K_V1, the papers' weights, or `DEEP_STEM_WEIGHTS` for a ResNet with a deep stem.
    Raises UserError if the download fails, the file cannot be read or does not fit.
    """
    if weights == "none":
        return
    addresses = _addresses(resnet, name)
    if weights in addresses:
        address = addresses[weights]
        try:
            state = torch.hub.load_state_dict_from_url(address, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(
                f"could not download {address} ({error}): fetch it elsewhere and give its path as --model.weights FILE"
            ) from error
    elif Path(weights).is_file():
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds; each means that the file is no state dict
            raise UserError(f"{weights}: not a readable PyTorch state dict ({type(error).__name__})") from error
    else:
        raise UserError(f"--model.weights {weights}: no such file; choose {', '.join(['none', *addresses])} or a path")
    wanted = resnet.state_dict()
    # torchvision's files hold the classifier too, and old ones lack the batch counters.
    state = {key: value for key, value in state.items() if key in wanted} if isinstance(state, dict) else {}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in state if state[key].shape != wanted[key].shape]
    if missing or wrong:
        kind = f"{name} with BLPSeg's deep stem" if isinstance(resnet, Pyramid) else name
        raise UserError(f"{weights}: not the weights of a {kind} (at {(missing + wrong)[0]})")
    resnet.load_state_dict(state, strict=False)


def _addresses(resnet: nn.Sequential, name: str) -> dict[str, str]:
    """What `load_backbone` can download for a ResNet: the name of the weights -> address."""
    if isinstance(resnet, Pyramid):
        return {"imagenet": DEEP_STEM_WEIGHTS[name]} if name in DEEP_STEM_WEIGHTS else {}
    choices = torchvision.models.get_model_weights(name)
    return {"imagenet": choices["IMAGENET1K_V1"].url} | {key: entry.url for key, entry in choices.__members__.items()}
