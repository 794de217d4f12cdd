"""The network of RecurSeed and CertainMix: a DeepLabv3+ at stride 16 with a classifier of image tags."""

import torch
from torch import nn

from config import ModelConfig
from errors import UserError
from models.encoder import FUSED, TIMM, FusedMaps, build_encoder
from models.layers import ASPP, conv_bn_relu
from models.resnet import stride16_resnet
from ops.resizing import resize, upsample

# The two releases: a weight by which a file is recognised -> (prefix of a published name -> ours, the last classifier).
RELEASES = {
    "aspp.aspp1.atrous_conv.weight": (  # RecurSeed + CertainMix, 2022-04
        {
            "model.": "backbone.",
            "classifier.": "classifier.",
            **{f"aspp.aspp{n}.atrous_conv.": f"aspp.branches.{n - 1}.0." for n in range(1, 5)},
            **{f"aspp.aspp{n}.bn.": f"aspp.branches.{n - 1}.1." for n in range(1, 5)},
            "aspp.global_avg_pool.": "aspp.pooled.",
            "aspp.conv1.": "aspp.project.0.",
            "aspp.bn1.": "aspp.project.1.",
            "decoder.conv1.": "reduce.0.",
            "decoder.bn1.": "reduce.1.",
            "decoder.classifier.": "decoder.",
        },
        "decoder.classifier.8.weight",
    ),
    "decoder.low_block.conv.weight": (  # RecurSeed + EdgePredictMix, 2022-08
        {
            "model.": "backbone.",
            "classifier.": "classifier.",
            **{f"aspp.aspp{n}.conv.": f"aspp.branches.{n - 1}.0." for n in range(1, 5)},
            **{f"aspp.aspp{n}.bn.": f"aspp.branches.{n - 1}.1." for n in range(1, 5)},
            "aspp.global_avg_pool.1.conv.": "aspp.pooled.1.",
            "aspp.global_avg_pool.1.bn.": "aspp.pooled.2.",
            "aspp.block.0.conv.": "aspp.project.0.",
            "aspp.block.0.bn.": "aspp.project.1.",
            "decoder.low_block.conv.": "reduce.0.",
            "decoder.low_block.bn.": "reduce.1.",
            "decoder.classifier.0.conv.": "decoder.0.",
            "decoder.classifier.0.bn.": "decoder.1.",
            "decoder.classifier.2.conv.": "decoder.4.",
            "decoder.classifier.2.bn.": "decoder.5.",
            "decoder.classifier.4.": "decoder.8.",
        },
        "decoder.classifier.4.weight",
    ),
}


def with_average(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights, and the same weights as the average: a released file has one network."""
    average = {key.replace("network.", "average.module.", 1): value.clone() for key, value in weights.items()}
    return weights | average | {"average.n_averaged": torch.tensor(1)}


class RecurSeedNet(nn.Module):
    """Encoder at stride 16 -> a bias-free 1x1 classifier of the C - 1 tags; and ASPP with rates 6, 12, 18, fused with the map
    of stride 4 by two 3x3 convolutions -> logits of the C classes (Jo et al., arXiv 2204.06754). Resizes have
    align_corners=False.

    A ResNet's last stage keeps stride 16 without dilation, as published. The maps of strides 16 and 32 of a timm network are
    fused at stride 16.
    """

    def __init__(self, model: ModelConfig, num_classes: int):
        """Raises UserError for --model.maps dilated on a timm network or fused on a ResNet, or an encoder without a map of
        stride 4."""
        super().__init__()
        self.fused: FusedMaps | None = None
        if model.backbone.startswith(TIMM):
            if model.maps == "dilated":
                raise UserError(f"RecurSeed fuses the maps of {model.backbone}: leave out --model.maps dilated")
            self.backbone = build_encoder(model.backbone, 4)
            self.fused = FusedMaps(self.backbone, FUSED, 16)
        elif model.maps == "fused":
            raise UserError(f"RecurSeed takes the last map of {model.backbone}: leave out --model.maps fused")
        else:
            self.backbone = build_encoder(model.backbone, 4, 16, stride16_resnet)
        if 4 not in self.backbone.strides:
            raise UserError(f"{model.backbone} has no map of stride 4, which RecurSeed's decoder needs")
        width = FUSED if self.fused else self.backbone.widths[-1]
        self.classifier = nn.Conv2d(width, num_classes - 1, 1, bias=False)
        self.aspp = ASPP(width, 256, (6, 12, 18), nn.Sequential(*conv_bn_relu(5 * 256, 256, 1), nn.Dropout(0.5)))
        self.reduce = conv_bn_relu(self.backbone.widths[0], 256, 1)
        self.decoder = nn.Sequential(
            *conv_bn_relu(512, 256, 3),
            nn.Dropout(0.5),
            *conv_bn_relu(256, 256, 3),
            nn.Dropout(0.1),
            nn.Conv2d(256, num_classes, 3, padding=1, bias=False),
        )

    def encode(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(B, 3, H, W) -> the encoder's maps, finest first, and the last features (B, D, h, w) at stride 16."""
        maps = self.backbone(images)
        return maps, maps[-1] if self.fused is None else self.fused(maps, images.shape[-2:])

    def correlated(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The encoder's maps whose self-correlation SCG takes: of the strides 8 and 16."""
        return [maps[self.backbone.strides.index(stride)] for stride in (8, 16)]

    def tags(self, features: torch.Tensor) -> torch.Tensor:
        """The last features -> (B, C - 1, h, w) activations of the classes except the first. Their spatial means are the tag
        logits."""
        return self.classifier(features)

    def segment(self, maps: list[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        """The results of `encode` -> (B, C, h, w) logits at stride 4."""
        low = self.reduce(maps[0])
        return self.decoder(torch.cat([resize(self.aspp(features), low.shape[-2:], align_corners=False), low], dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C, H, W)."""
        return upsample(self.segment(*self.encode(images)), images.shape[-2:], align_corners=False)

    def segment_and_classify(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) -> logits (B, C, h, w) at stride 4, and activations (B, C - 1, h, w) at stride 16."""
        maps, features = self.encode(images)
        return self.segment(maps, features), self.tags(features)
