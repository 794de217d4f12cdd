"""BLPSeg (IEEE TIP 2023): a scribble head learns which pixels people label and balances the loss of the segmentation head.
Local aggregation smooths the logits. Later, the network's own certain predictions become labels (self-training)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from config import Config, MethodConfig, ModelConfig, ZeroOrDeviation
from datasets.batch import Batch
from errors import UserError
from losses.label_preference import label_preference
from losses.partial_cross_entropy import IGNORE_INDEX
from losses.scribble_cross_entropy import scribble_cross_entropy, scribble_weights
from methods.base import Method, Published
from models.blpseg import BLPSegNet
from ops.pixelwise import pixelwise
from ops.resizing import upsample


@dataclass
class BLPSegConfig(MethodConfig):
    """BLPSeg: its network, the balance of its loss, and its self-training."""

    name: str = "blpseg"
    """the method (methods/__init__.py lists them); --method.name NAME --help shows the settings of another"""
    gamma: NonNegativeFloat = 2.0
    """a pixel has the weight (1 - p_scribble p_seg)^gamma; 0 is plain cross-entropy, averaged per image first"""
    sigma: ZeroOrDeviation = 6.0
    """standard deviation of the Gaussian in the local aggregation, in steps of 4 pixels; 0 disables the module"""
    width: PositiveInt = 256
    """channels of the decoder, the heads and the patch embedding"""
    unlabelled_weight: NonNegativeFloat = 0.02
    """weight of an unlabelled pixel in the scribble head's loss"""
    self_training_from: NonNegativeInt | None = 10_000
    """step at which self-training begins: certain predictions become labels, too; null: never"""
    threshold: ClosedUnitInterval = 0.9
    """a prediction becomes a label if its probability is higher"""


# Published name of a weight -> ours, by prefix.
BLPSEG = {
    **{f"backbone.{part}.": f"backbone.{part}." for part in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")},
    **{f"{part}.": f"{part}." for part in ("ppm", "decoder", "seg_head", "scribble_head", "embed_proj")},
}


class BLPSeg(Method):
    """UPerNet with a segmentation head under the balanced loss and a scribble head under a weighted cross-entropy."""

    settings = BLPSegConfig
    published = {  # noqa: RUF012, read only
        "embed_proj.conv.weight": Published(
            lambda state: BLPSegConfig(width=state["seg_head.4.weight"].shape[1]), BLPSEG, "backbone.", "seg_head.4.weight"
        )
    }
    reads = frozenset({"label", "tags"})
    fewest_images = 2  # batch norm over the pooled features needs two images
    preset = "blpseg"
    grid = (32, 0)  # the network resizes with align_corners=False
    large_image = 1_000_000  # at stride 4, as many positions as 4 million pixels have at stride 8

    network: BLPSegNet

    def __init__(self, config: BLPSegConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        if model.maps != ModelConfig.maps:
            raise UserError("--model.maps: BLPSeg uses the maps of an encoder as they are; leave out the flag")
        self.config = config
        self.network = BLPSegNet(model.backbone, num_classes, config.sigma, config.width)
        self.num_classes = num_classes
        self.self_training = False

    def check_settings(self, config: Config, steps: int, epochs: float) -> None:
        start = self.config.self_training_from
        if start is not None and start >= steps:
            raise UserError(
                f"method.self_training_from is {start}, but training ends after {steps} steps: give an earlier step (see "
                "configs/blpseg/demo.yaml), more --train.epochs or --train.steps, or null for no self-training"
            )

    def begin_step(self, step: int, epoch: float) -> None:
        start = self.config.self_training_from
        self.self_training = start is not None and step >= start

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        config, classes, images = self.config, self.num_classes, batch["image"]
        features = self.network.features(images)
        logits = torch.cat([self.network.segment(images, features), self.network.scribble(features)], dim=1)

        def balanced(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
            logits, scribble_logits = logits.split((classes, classes + 1), dim=1)
            label, outside = batch["label"][some], batch["outside"][some]
            if self.self_training:
                label = self_training_labels(logits, label, outside, batch["tags"][some], config.threshold)
            return label_preference(logits, scribble_logits, label, config.gamma), logits.new_full((), len(label))

        def scribble(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
            label, outside = batch["label"][some], batch["outside"][some]
            weight = scribble_weights(label, outside, config.unlabelled_weight).sum(dtype=logits.dtype)
            return scribble_cross_entropy(logits[:, classes:], label, outside, config.unlabelled_weight), weight

        return pixelwise({"label_preference": balanced, "scribble": scribble}, logits, images.shape[-2:], align_corners=False)

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """During self-training, `self_training/precision/ID` and `self_training/coverage/ID` for each class: the share of the
        class's labels that are right, and the share of the class's pixels with this label. Scribbles count as labels. Pixels
        without a mask do not count."""
        if not self.self_training:
            return {}
        images, truth = batch["image"], batch["truth"].long()
        logits = upsample(self.network.segment(images, self.network.features(images)), images.shape[-2:], align_corners=False)
        label = self_training_labels(logits, batch["label"], batch["outside"], batch["tags"], self.config.threshold)
        known = truth != IGNORE_INDEX
        classes = range(self.num_classes)
        counts = torch.stack([
            torch.stack([(label == n) & (truth == n), (label == n) & known, truth == n]).sum(dim=(1, 2, 3)) for n in classes
        ])  # fmt: skip
        if dist.is_initialized():
            dist.all_reduce(counts)
        right, labelled, true = counts.double().unbind(dim=1)
        figures = {f"self_training/precision/{n}": right[n] / labelled[n] for n in classes if labelled[n]}
        return figures | {f"self_training/coverage/{n}": right[n] / true[n] for n in classes if true[n]}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)


@torch.no_grad()
def self_training_labels(
    logits: torch.Tensor, label: torch.Tensor, outside: torch.Tensor, tags: torch.Tensor, threshold: float
) -> torch.Tensor:
    """The labels. An unlabelled pixel gets its most likely class if the probability is over `threshold` (BLPSeg).

    logits: (B, C, H, W). label: (B, H, W) int64, 255 = unlabelled. outside: (B, H, W) bool, True outside the image.
    tags: (B, C - 1), 0 at classes that the image does not show; class 0 is always possible. Returns (B, H, W) int64.
    """
    possible = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)[:, :, None, None]
    probability, own = (logits.softmax(dim=1) * possible).max(dim=1)
    own = own.masked_fill((probability <= threshold) | outside, IGNORE_INDEX)
    return torch.where(label == IGNORE_INDEX, own, label)
