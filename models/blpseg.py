"""The network of BLPSeg: UPerNet on a deep-stem ResNet, a segmentation and a scribble head, local aggregation."""

import math

import torch
from torch import nn

from models.encoder import build_encoder
from models.local_aggregation import PatchEmbedding, local_aggregation
from models.resnet import RESNETS, deep_stem_resnet
from models.upernet import PyramidPooling, UPerNetDecoder
from ops.resizing import resize, upsample


class BLPSegNet(nn.Module):
    """Encoder (as published, a deep-stem ResNet) -> pyramid pooling -> UPerNet decoder (stride 4) -> two heads of three 1x1
    convolutions (BLPSeg, IEEE TIP 2023).

    Decoder, heads and patch embedding have `width` channels (256 as published). Local aggregation smooths the logits of the
    segmentation head (C classes) if `sigma` (in positions of stride 4) is over 0. The scribble head (C + 1 classes, the last
    "unlabelled") learns which pixels people label. Its gradient does not reach the decoder.
    forward: images (B, 3, H, W) -> segmentation logits (B, C, H, W).
    """

    def __init__(self, backbone: str, num_classes: int, sigma: float, width: int):
        super().__init__()
        self.sigma = sigma
        self.backbone = deep_stem_resnet(backbone) if backbone in RESNETS else build_encoder(backbone, 4)
        *below, last = self.backbone.widths
        self.ppm = PyramidPooling(last, width)
        self.decoder = UPerNetDecoder(below, width)
        self.seg_head = _head(width, num_classes)
        self.scribble_head = _head(width, num_classes + 1)
        if sigma:
            self.embed_proj = PatchEmbedding(width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, width, ceil(H/4), ceil(W/4))."""
        *maps, last = self.backbone(images)
        features = self.decoder(maps, self.ppm(last))
        grid = [math.ceil(side / 4) for side in images.shape[-2:]]  # an encoder's finest map may be coarser
        return features if list(features.shape[-2:]) == grid else resize(features, grid, align_corners=False)

    def segment(self, images: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Images and their `features` -> (B, C, h, w) segmentation logits at stride 4, float32 at least."""
        logits = self.seg_head(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return local_aggregation(logits, self.embed_proj(images), self.sigma) if self.sigma else logits

    def scribble(self, features: torch.Tensor) -> torch.Tensor:
        """`features` -> (B, C + 1, h, w) scribble logits at stride 4; no gradient reaches the features."""
        return self.scribble_head(features.detach())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.segment(images, self.features(images))
        return upsample(logits, images.shape[-2:], align_corners=False)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, outputs, 1),
    )
