"""UniMatch (Yang et al., CVPR 2023) and FixMatch, peers of CISC-R: confident predictions on a weak view of an unlabelled image
are the labels of its strong views."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval

from config import MethodConfig, ModelConfig
from datasets.batch import Batch
from losses.partial_cross_entropy import IGNORE_INDEX, coarse_cross_entropy
from methods.base import Method
from models.deeplab import NETWORKS, FeatureNet
from ops.mixing import cutmix_boxes
from ops.pixelwise import mean_where, pixelwise_mean
from ops.resizing import upsample


@dataclass
class UniMatchConfig(MethodConfig):
    """UniMatch: its network and the views that it learns from."""

    name: str = "unimatch"
    """the method"""
    network: Literal["deeplabv3plus", "pspnet", "deeplabv2"] = "deeplabv3plus"
    """the network on the encoder, as CISC-R's but without dropout"""
    views: Literal["fixmatch", "unimatch"] = "unimatch"
    """fixmatch: one strong view. unimatch: two strong views, and the weak view with half of the encoder's channels dropped"""
    threshold: ClosedUnitInterval = 0.95
    """least probability of a prediction on the weak view that becomes a label"""


@dataclass
class Target:
    """Predictions on the weak view as labels: all (B, H, W)."""

    label: torch.Tensor
    """int64 class ids"""
    confident: torch.Tensor
    """bool: whether the label counts"""
    inside: torch.Tensor
    """bool: False outside the image"""

    def mixed(self, box: torch.Tensor) -> "Target":
        """The targets after `mix`."""
        return Target(*(mix(values, box) for values in (self.label, self.confident, self.inside)))


class UniMatch(Method):
    """A network that agrees with its own confident predictions."""

    settings = UniMatchConfig
    reads = frozenset({"labelled", "strong"})
    preset = "fast"
    fewest_in_process = 2  # CutMix takes boxes from another image
    network: FeatureNet

    def __init__(self, config: UniMatchConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.network = NETWORKS[config.network](model, num_classes)
        self.grid = (self.network.unit, 1)
        for module in self.network.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.p = 0.0

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses of B labelled and B unlabelled images (B >= 2), weighted as in UniMatch: (L_x + L_s1 / 4 + L_s2 / 4 +
        L_fp / 2) / 2; FixMatch: (L_x + L_s) / 2."""
        labelled, count = batch["labelled"], len(batch["image"])
        size = batch["image"].shape[-2:]
        features, finer = self.network.encode(torch.cat([labelled["image"], batch["image"]]))
        if self.config.views == "unimatch":  # the weak view again, with half of the channels dropped
            features = with_dropped(features, count)
            finer = [with_dropped(one, count) for one in finer]
        logits = self.network.classify(self.network.combine(features, finer))
        of_labelled, weak = logits[: len(labelled["image"])], logits[len(labelled["image"]) :]
        target = self._target(weak[:count].detach(), batch["outside"])
        losses = {"cross_entropy": coarse_cross_entropy(of_labelled, labelled["label"]) / 2}
        if self.config.views == "unimatch":
            losses["dropped_channels"] = _consistency(weak[count:], target, size) / 4

        views = batch["strong"].unbind(dim=1)[: 2 if self.config.views == "unimatch" else 1]
        boxes = [cutmix_boxes(count, size).to(weak.device) for _ in views]
        mixed = torch.cat([mix(view, box[:, None]) for view, box in zip(views, boxes, strict=True)])
        strong = self.network.coarse(mixed.contiguous(memory_format=torch.channels_last)).chunk(len(views))
        terms = [_consistency(view, target.mixed(box), size) for view, box in zip(strong, boxes, strict=True)]
        losses["strong_views"] = torch.stack(terms).sum() / (8 if self.config.views == "unimatch" else 2)
        return losses

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`weak_view/confident`, the share of the pixels whose prediction becomes a label; `weak_view/precision`, the share of
        these labels that the dense masks confirm (NaN without any)."""
        target, truth = self._target(self.network.coarse(batch["image"]), batch["outside"]), batch["truth"].long()
        known = target.confident & target.inside & (truth != IGNORE_INDEX)
        return {
            "weak_view/confident": mean_where(target.confident, target.inside),
            "weak_view/precision": mean_where(target.label == truth, known),
        }

    @torch.no_grad()
    def _target(self, logits: torch.Tensor, outside: torch.Tensor) -> Target:
        """logits: (B, C, h, w) of the weak view. outside: (B, H, W) bool."""
        probability, label = upsample(logits, outside.shape[-2:]).softmax(dim=1).max(dim=1)
        return Target(label, probability >= self.config.threshold, ~outside)


def with_dropped(maps: torch.Tensor, count: int) -> torch.Tensor:
    """The maps (B, D, h, w), and after them the last `count` maps once more, each with half of its channels dropped."""
    return torch.cat([maps, F.dropout2d(maps[-count:], 0.5)])


def mix(values: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Values (B, ...) with those of the image before in the batch where `box` (broadcast to the values) is True."""
    return torch.where(box, values.roll(1, dims=0), values)


def _consistency(logits: torch.Tensor, target: Target, size: tuple[int, ...]) -> torch.Tensor:
    """Cross-entropy (B, C, h, w) with the confident labels, a mean over the pixels inside the images."""

    def term(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        entropy = F.cross_entropy(logits, target.label[some], reduction="none")
        count = target.inside[some].sum()
        return (entropy * (target.confident & target.inside)[some]).sum() / count.clamp(min=1), count

    return pixelwise_mean(term, logits, size)
