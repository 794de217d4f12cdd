"""The network of BLPSeg: UPerNet on a deep-stem ResNet, a segmentation and a scribble head, local aggregation."""

import torch
from torch import nn

from models.local_aggregation import PatchEmbedding, local_aggregation
from models.resnet import channels, deep_stem_resnet
from models.upernet import PyramidPooling, UPerNetDecoder
from ops.resizing import upsample


class BLPSegNet(nn.Module):
    """Deep-stem ResNet (stride 32) -> pyramid pooling -> UPerNet decoder (stride 4) -> two heads of three 1x1 convolutions
    (BLPSeg, IEEE TIP 2023).

    Decoder, heads and patch embedding are `width` channels wide (256 as published). Where `sigma` (in positions of stride 4) is
    over 0, the segmentation head's logits (C) are smoothed by local aggregation. The scribble head (C + 1, its last class
    "unlabelled") learns which pixels people label, and leaves the decoder alone.
    forward: images (B, 3, H, W) -> segmentation logits (B, C, H, W) at the input's size.
    """

    def __init__(self, backbone: str, num_classes: int, sigma: float, width: int):
        super().__init__()
        self.sigma = sigma
        self.backbone = deep_stem_resnet(backbone)
        first, second, third, last = (channels(getattr(self.backbone, f"layer{n}")) for n in range(1, 5))
        self.ppm = PyramidPooling(last, width)
        self.decoder = UPerNetDecoder([first, second, third], width)
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
        return self.decoder(maps, self.ppm(last))

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
