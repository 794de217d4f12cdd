"""Encoders: torchvision's ResNets under published names and any timm network, behind `models.resnet.Encoder`."""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import nn

from config import ModelConfig
from errors import UserError
from models.layers import conv_bn_relu
from models.resnet import RESNETS, Encoder, ResNet, natural_resnet, stride8_resnet
from ops.resizing import resize, upsample

TIMM = "timm:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FUSED = 256  # channels of fused maps


class TimmEncoder(Encoder):
    """A timm network without its classifier, under timm's names with `net.model.` before them.

    Images are normalised again where the network was trained with other statistics than ImageNet's. A network that cuts images
    into patches sees them resized to whole patches.
    """

    net: Any
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str, finest: int, held: int | None = None):
        """finest: the smallest stride to return. held: the largest stride; later stages are dilated instead of strided. Raises
        UserError for an unknown name, and for a network that cannot be held or takes one image size only."""
        super().__init__()
        self.net = _create(name, {} if held is None else {"output_stride": held})
        info = self.net.feature_info
        strides = info.reduction()
        chosen = [place for place, stride in enumerate(strides) if stride >= finest]
        if held is not None:
            if max(strides) > held:
                raise UserError(f"{TIMM}{name} cannot be held at stride {held}: choose --model.maps fused, or another backbone")
            chosen = [place for place in chosen if place == len(strides) - 1 or strides[place + 1] > strides[place]]
        if len(chosen) < len(strides):
            self.net = _create(name, {"out_indices": tuple(chosen)} | ({} if held is None else {"output_stride": held}))
            info = self.net.feature_info
        self.strides, self.widths = tuple(info.reduction()), tuple(info.channels())
        patch = getattr(getattr(self.net.model, "patch_embed", None), "patch_size", 1)
        self.patch = int(patch[0] if isinstance(patch, Sequence) else patch)
        self.register_buffer("scale", torch.ones(3, 1, 1))
        self.register_buffer("shift", torch.zeros(3, 1, 1))
        config = self.net.model.default_cfg
        self.set_statistics(config["mean"], config["std"])
        self._probe(name)

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The mean and deviation of images (0 to 1) that the network was trained with."""
        for channel in range(3):
            self.scale[channel] = IMAGENET_STD[channel] / std[channel]
            self.shift[channel] = (IMAGENET_MEAN[channel] - mean[channel]) / std[channel]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> maps (B, widths[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        size = images.shape[-2:]
        images = images * self.scale + self.shift
        if self.patch > 1:
            whole = [math.ceil(side / self.patch) * self.patch for side in size]
            images = _fitted(images, whole)
        return [
            _fitted(features, [math.ceil(side / stride) for side in size])
            for features, stride in zip(self.net(images), self.strides, strict=True)
        ]

    @torch.no_grad()
    def _probe(self, name: str) -> None:
        """Raises UserError if the network takes images of one size only."""
        was_training = self.training
        try:
            self.eval()(torch.zeros(1, 3, 4 * self.patch + 61, 6 * self.patch + 61))
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"{TIMM}{name} does not take images of any size ({error}): choose another backbone") from error
        self.train(was_training)


def _fitted(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return maps if list(maps.shape[-2:]) == list(size) else resize(maps, size, align_corners=True)


def _create(name: str, how: dict) -> nn.Module:
    """timm's network with its maps. Raises UserError for an unknown name, or one without maps."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"did you mean {TIMM}{near[0]}?" if near else "timm.list_models() lists them"
        raise UserError(f"--model.backbone {TIMM}{name}: timm has no such network; {hint}")
    refused: Exception | None = None
    # Networks of patches take other sizes than they were trained at by one of these settings; the others know neither.
    choices: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
    for flexible in choices:
        try:
            return timm.create_model(name, pretrained=False, features_only=True, feature_cls="getter", **flexible, **how)
        except TypeError as error:
            refused = error
        except (AssertionError, NotImplementedError, RuntimeError, AttributeError) as error:
            refused = error
            break
    if "output_stride" in how:
        raise UserError(
            f"{TIMM}{name} cannot be held at stride {how['output_stride']}: choose --model.maps fused, or another backbone"
        ) from refused
    raise UserError(f"{TIMM}{name} gives no feature maps ({refused}): choose another backbone") from refused


def build_encoder(
    name: str, finest: int, held: int | None = None, held_resnet: Callable[[str, int], ResNet] = stride8_resnet
) -> Encoder:
    """The encoder that `--model.backbone` names: a ResNet of torchvision, or timm:NAME.

    finest: the smallest stride to return. held: None for the natural strides up to 32, or the stride that later stages keep.
    held_resnet: name, finest -> a ResNet that is held. Raises UserError for an unknown name.
    """
    if name.startswith(TIMM):
        return TimmEncoder(name.removeprefix(TIMM), finest, held)
    if name not in RESNETS:
        near = difflib.get_close_matches(name, RESNETS, 1)
        if timm.is_model(name):
            near = [TIMM + name]
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(RESNETS)} or {TIMM}NAME"
        raise UserError(f"--model.backbone {name}: no such encoder; {hint}")
    return natural_resnet(name, finest) if held is None else held_resnet(name, finest)


class FusedMaps(nn.Module):
    """Maps of an encoder fused top-down at one stride: 1x1 convolutions to `width` channels, added from the coarsest to the
    finest, as in a feature pyramid (Lin et al., FPN, CVPR 2017)."""

    def __init__(self, encoder: Encoder, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.levels = tuple(place for place, of in enumerate(encoder.strides) if of >= stride)
        self.lateral = nn.ModuleList(conv_bn_relu(encoder.widths[place], width, 1) for place in self.levels)

    def forward(self, maps: list[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """The encoder's maps of images of `size` -> (B, width, ceil(H / stride), ceil(W / stride))."""
        grid = [math.ceil(side / self.stride) for side in size]
        chosen = [maps[place] for place in self.levels]
        fused = self.lateral[-1](chosen[-1])
        for convolution, features in zip(reversed(self.lateral[:-1]), reversed(chosen[:-1]), strict=True):
            features = convolution(features)
            fused = features + _fitted(fused, features.shape[-2:])
        return _fitted(fused, grid)


class StrideEightNet(nn.Module):
    """A network on an encoder that is brought to stride 8. Subclasses add a head.

    ResNets are held at stride 8 by dilation, as published. The maps of other encoders are fused at stride 8. `model.maps`
    overrides this.
    """

    def __init__(self, model: ModelConfig, finest: int = 8, held_resnet: Callable[[str, int], ResNet] = stride8_resnet):
        """finest: the smallest stride of the encoder's maps that the subclass uses. held_resnet: see `build_encoder`."""
        super().__init__()
        fuses = model.maps == "fused" or (model.maps == "auto" and model.backbone.startswith(TIMM))
        self.backbone = build_encoder(model.backbone, finest, None if fuses else 8, held_resnet)
        self.fused = FusedMaps(self.backbone, FUSED, 8) if fuses else None
        self.width = FUSED if fuses else self.backbone.widths[-1]
        self.finer = [width for width, stride in zip(self.backbone.widths, self.backbone.strides, strict=True) if stride < 8]
        """channels of the maps finer than stride 8"""
        coarsest = max(self.backbone.strides)
        self.unit = coarsest if coarsest % 8 == 0 else 8
        """the maps of images with sides of unit * k + 1 lie on each other: position i of a map of stride s looks at pixel
        s * i, and align_corners=True keeps it there"""

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, 3, H, W) -> features (B, `width`, h, w) at stride 8; the encoder's finer maps, finest first."""
        maps = self.backbone(images)
        features = maps[-1] if self.fused is None else self.fused(maps, images.shape[-2:])
        return features, maps[: len(self.finer)]

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C, h, w) of the head."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C, H, W)."""
        return upsample(self.coarse(images), images.shape[-2:])
