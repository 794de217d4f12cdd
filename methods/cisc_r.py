"""CISC-R (TPAMI 2022): a few labelled images and many unlabelled ones, pairs of images that share a class, pseudo-labels.

A step of CISC-R, and self-training (ST), are settings of the loss terms: see configs/cisc_r.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeFloat

from config import MethodConfig, ModelConfig
from datasets.batch import Batch
from errors import UserError
from losses.cross_image import cosine_map, map_consistency, masked_mean
from losses.partial_cross_entropy import IGNORE_INDEX, coarse_cross_entropy, partial_cross_entropy
from losses.rectified_cross_entropy import rectification, rectified_cross_entropy
from methods.base import Method, Published, Reads
from models.deeplab import NETWORKS, FeatureNet
from ops.pixelwise import mean_where, pixelwise_mean
from ops.resizing import upsample


@dataclass
class CISCRConfig(MethodConfig):
    """CISC-R: its network and its loss terms."""

    name: str = "cisc_r"
    """the method"""
    network: Literal["deeplabv3plus", "pspnet", "deeplabv2"] = "deeplabv3plus"
    """the network on the encoder"""
    consistency: NonNegativeFloat = 0.0
    """weight of the consistency of labelled pairs (step 1); over 0, each training image comes with a partner"""
    pseudo_labels: Literal["none", "plain", "rectified"] = "none"
    """what data.labels are. none: labels of people. plain: pseudo-labels, with data.labelled beside them (ST). rectified: as
    plain, and a pseudo-label counts less where the teacher and a labelled partner disagree with it (steps 4 and 6)"""


# Published name of a weight -> ours, by prefix.
DEEPLABV3PLUS_NAMES = {
    **{f"head.b{n}.": f"aspp.branches.{n}." for n in range(4)},
    "head.b4.gap.": "aspp.pooled.",
    "head.project.": "aspp.project.",
    **{f"{part}.": f"{part}." for part in ("backbone", "reduce", "fuse", "classifier")},
}
PSPNET_NAMES = {
    "backbone.": "backbone.",
    **{f"head.conv5.0.conv{n}.{part}.": f"pools.{n - 1}.{part + 1}." for n in range(1, 5) for part in (0, 1)},
    "head.conv5.1.": "fuse.0.",
    "head.conv5.2.": "fuse.1.",
    "head.conv5.5.": "classifier.1.",
}
DEEPLABV2_NAMES = {"backbone.": "backbone.", "classifier.": "classifier."}


class CISCR(Method):
    """A network whose feature map compares two images at the class that they share."""

    settings = CISCRConfig
    published = {  # noqa: RUF012, read only
        "head.b0.0.weight": Published(lambda _: CISCRConfig(), DEEPLABV3PLUS_NAMES, "backbone.", "classifier.weight"),
        "head.conv5.0.conv1.0.weight": Published(
            lambda _: CISCRConfig(network="pspnet"), PSPNET_NAMES, "backbone.", "head.conv5.5.weight"
        ),
        "classifier.3.weight": Published(
            lambda _: CISCRConfig(network="deeplabv2"), DEEPLABV2_NAMES, "backbone.", "classifier.0.weight"
        ),
    }
    preset = "cisc_r"
    network: FeatureNet

    def __init__(self, config: CISCRConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        if config.consistency and config.pseudo_labels != "none":
            raise UserError("method.consistency is for labels of people: leave it at 0 with method.pseudo_labels")
        self.config = config
        self.network = NETWORKS[config.network](model, num_classes)
        self.grid = (self.network.unit, 1)
        self.fewest_images = 1 if config.network == "deeplabv2" else 2  # batch norm over pooled features needs two images
        reads: set[Reads] = {"label"}
        if config.consistency:
            reads |= {"partner"}
        if config.pseudo_labels != "none":
            reads |= {"labelled"}
        if config.pseudo_labels == "rectified":
            reads |= {"partner", "teacher"}
        self.reads = frozenset(reads)

    def begin_training(self, teacher: Method | None) -> None:
        if teacher is not None and not isinstance(teacher, CISCR):
            raise UserError("--teacher: CISC-R needs a teacher with a feature map, so a checkpoint of method cisc_r")
        super().begin_training(teacher)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self.config.pseudo_labels != "none":
            return self._learn_from_pseudo_labels(batch)
        if self.config.consistency:
            return self._learn_from_pairs(batch, batch["partner"])
        return {"cross_entropy": coarse_cross_entropy(self.network.coarse(batch["image"]), batch["label"])}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`pairs/share`, the share of the images whose partner shares a class. With rectified pseudo-labels also
        `rectification/weight_where_right` and `rectification/weight_where_wrong`, the mean weight of the pseudo-labels that
        agree with the dense masks and of those that do not (NaN without any)."""
        if "partner" not in batch:
            return {}
        figures = {"pairs/share": (batch["partner"]["shared"] >= 0).float().mean()}
        if self.config.pseudo_labels == "rectified":
            weight, wrong, known = self.rectification(batch), *_wrong_and_known(batch)
            figures["rectification/weight_where_right"] = mean_where(weight, known & ~wrong)
            figures["rectification/weight_where_wrong"] = mean_where(weight, wrong)
        return figures

    def pictures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """With rectified pseudo-labels: the pseudo-label, where it is wrong, and |m - S|, how much the partner disagrees."""
        if self.config.pseudo_labels != "rectified":
            return {}
        wrong, known = _wrong_and_known(batch)
        shown = {"pseudo-label": batch["label"], "wrong": wrong, "|m - S|": 1 - self.rectification(batch)}
        return shown if known.any() else {name: values for name, values in shown.items() if name != "wrong"}

    def _learn_from_pairs(self, batch: Batch, partner: Batch) -> dict[str, torch.Tensor]:
        """Step 1. One forward pass of both images of the pairs, so that batch norm sees both."""
        pair = (batch, partner)
        features = self.network.feature(torch.cat([one["image"] for one in pair]))
        first, second = self.network.classify(features).chunk(2)
        losses = {
            "cross_entropy": coarse_cross_entropy(first, batch["label"]),
            "partner_cross_entropy": coarse_cross_entropy(second, partner["label"]),
        }
        maps = [shared_map(one["label"], partner["shared"]) for one in pair]
        halves = features.chunk(2)
        means = [masked_mean(half, one) for half, one in zip(halves, maps, strict=True)]
        both = []
        for own, other in ((0, 1), (1, 0)):
            term = partial(_consistency, pair[own]["label"], maps[own])
            similar = cosine_map(halves[own], means[other])
            both.append(pixelwise_mean(term, similar, maps[own].shape[-2:], align_corners=False))
        return losses | {"consistency": self.config.consistency * (both[0] + both[1])}

    def _learn_from_pseudo_labels(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Steps 4 and 6, and ST. One forward pass of the unlabelled and the labelled images."""
        labelled, label = batch["labelled"], batch["label"]
        logits = self.network.coarse(torch.cat([batch["image"], labelled["image"]]))
        unlabelled_logits, labelled_logits = logits.split((len(batch["image"]), len(labelled["image"])))
        weight = self.rectification(batch) if self.config.pseudo_labels == "rectified" else None

        def pseudo(logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
            count = (label[some] != IGNORE_INDEX).sum()
            if weight is None:
                return partial_cross_entropy(logits, label[some]), count
            return rectified_cross_entropy(logits, label[some], weight[some]), count

        return {
            "cross_entropy": coarse_cross_entropy(labelled_logits, labelled["label"]),
            "pseudo_cross_entropy": pixelwise_mean(pseudo, unlabelled_logits, label.shape[-2:]),
        }

    @torch.no_grad()
    def rectification(self, batch: Batch) -> torch.Tensor:
        """The weights (B, H, W) float32 of the pseudo-labels, from the teacher's features of the images and of their
        partners."""
        assert isinstance(self.teacher, CISCR)
        partner, label = batch["partner"], batch["label"]
        features = self.teacher.network.feature(torch.cat([batch["image"], partner["image"]]))
        own, other = features.chunk(2)
        means = masked_mean(other, shared_map(partner["label"], partner["shared"]))
        similar = upsample(cosine_map(own, means), label.shape[-2:], align_corners=False)[:, 0]
        return rectification(shared_map(label, partner["shared"]), similar)


def shared_map(label: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Where a label shows the shared class: label (B, H, W) int64, shared (B,) int64, -1 = none -> (B, H, W) bool."""
    return label == shared[:, None, None]


def _wrong_and_known(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a pseudo-label differs from the dense mask, and where both exist, (B, H, W) bool each."""
    label, truth = batch["label"], batch["truth"].long()
    known = (truth != IGNORE_INDEX) & (label != IGNORE_INDEX)
    return known & (label != truth), known


def _consistency(
    label: torch.Tensor, binary: torch.Tensor, similar: torch.Tensor, some: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    return map_consistency(similar[:, 0], binary[some], label[some]), (label[some] != IGNORE_INDEX).sum()
