"""torchvision's ResNets made stride 8, under torchvision's own state-dict names."""

import http.client
from collections import OrderedDict
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from errors import UserError

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STRIDE = 8


def stride8_resnet(name: str, layer4_dilations: tuple[int, ...] = (4,)) -> nn.Sequential:
    """A ResNet of `BACKBONES` without pooling and classifier: (B, 3, H, W) -> (B, D, h, w),
    D = `channels(net)`. Position i looks at pixel 8 i; h is k + 1 for H = 8 k + 1, and at most one more otherwise.

    `layer3` and `layer4` keep stride 1 and are dilated instead: 2, and `layer4_dilations` block by block (its last
    value for the blocks beyond). Every block is dilated alike, the first included; bottlenecks stride on their 1x1
    convolution (as the released CC4S does).
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
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    module.dilation = module.padding = (dilation, dilation)


def channels(resnet: nn.Sequential) -> int:
    """The width of the last stage: 512 for ResNet-18 and 34, 2048 for the deeper ones."""
    last = resnet.layer4[-1]
    return last.conv2.out_channels if isinstance(last, BasicBlock) else last.conv3.out_channels


def load_weights(resnet: nn.Sequential, name: str, weights: str) -> None:
    """Fills `resnet`: weights is "none", "imagenet" (torchvision's default for `name`), one of torchvision's names
    for it (such as IMAGENET1K_V1), or the path of a file with a state dict under torchvision's names.

    Raises UserError where the download fails, the file cannot be read or does not fit.
    """
    if weights == "none":
        return
    choices = torchvision.models.get_model_weights(name)
    if weights == "imagenet" or weights in choices.__members__:
        entry = choices.DEFAULT if weights == "imagenet" else choices[weights]
        try:
            state = entry.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(
                f"could not download {entry.url} ({error}): fetch it elsewhere and give its path as --model.weights FILE"
            ) from error
    elif Path(weights).is_file():
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds; each means that the file is no state dict
            raise UserError(f"{weights}: not a readable PyTorch state dict ({type(error).__name__})") from error
    else:
        raise UserError(
            f"--model.weights {weights}: no such file; choose none, imagenet, {', '.join(choices.__members__)} or a path"
        )
    wanted = resnet.state_dict()
    # torchvision's files hold the classifier too, and old ones lack the batch counters.
    state = {key: value for key, value in state.items() if key in wanted} if isinstance(state, dict) else {}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in state if state[key].shape != wanted[key].shape]
    if missing or wrong:
        raise UserError(f"{weights}: not the weights of a {name} (at {(missing + wrong)[0]})")
    resnet.load_state_dict(state, strict=False)
