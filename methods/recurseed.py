"""RecurSeed and CertainMix (Jo et al., arXiv 2204.06754): image tags alone. The training was not released; docs/recurseed.md
names what is a choice here.

Tags train a classifier of the features. Its class activation maps are grown along the self-correlation of the features (SCG),
refined to the edges of the image (PAMR), and filtered: certain pixels are labels of the decoder (RecurSeed). The decoder
improves the features, and so the next labels. CertainMix also trains on images with certain objects of others pasted in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.optim.swa_utils import AveragedModel

from config import Config, MethodConfig, ModelConfig
from datasets.batch import Batch
from errors import UserError
from losses.certain_labels import certain_labels, foreground, visible_tags
from losses.partial_cross_entropy import IGNORE_INDEX, coarse_cross_entropy
from losses.tag_loss import reconstruction, tag_loss
from methods.base import Method, Published
from models.recurseed import RELEASES, RecurSeedNet, with_average
from ops.mixing import cutmix_boxes
from ops.pixelwise import mean_where
from ops.resizing import resize, upsample
from ops.seeds import Seeds, activation_maps, grown_maps, over_largest, refined_maps, tagged


@dataclass
class RecurSeedConfig(MethodConfig):
    """RecurSeed: when its terms begin, and what becomes a label."""

    name: str = "recurseed"
    """the method"""
    segment_from: NonNegativeFloat = 5.0
    """epochs until the decoder learns from the labels of the classifier"""
    mix_from: NonNegativeFloat | None = 15.0
    """epochs until CertainMix begins; null: never"""
    certain: ClosedUnitInterval = 0.55
    """least value of a class at a pixel that becomes its label"""
    uncertain: ClosedUnitInterval = 0.10
    """largest value of all classes at a pixel that becomes background"""
    correlate: bool = True
    """grow the activation maps along the self-correlation (SCG)"""
    refine: NonNegativeInt = 10
    """steps of the refinement to the edges of the image (PAMR); 0: none"""
    dilations: tuple[PositiveInt, ...] = (1, 2, 4, 8, 12, 24)
    """distances of PAMR's neighbours, pixels"""
    renormalise: bool = True
    """divide each class's refined map by its largest value"""
    reconstruction: NonNegativeFloat = 0.0
    """weight of the L1 difference between the activation maps and the refined maps of the tagged classes (L_rec)"""
    mix: Literal["certain", "cut"] = "certain"
    """pixels of another image to paste. certain: its certain objects (CertainMix). cut: a rectangle (CutMix)"""
    visible_tags: bool = False
    """tags of a mix: the image's tags and the pasted classes; without this flag, the tags of both images"""
    decay: ClosedUnitInterval = 0.9999
    """decay of the average of the weights, which is evaluated; it grows from 0 as 1 - exp(-updates / ramp)"""
    ramp: PositiveInt = 2000
    """updates over which the decay grows to 63% of its end; a training of few steps needs fewer"""
    seed_thresholds: tuple[ClosedUnitInterval, ClosedUnitInterval] = (0.3, 0.05)
    """least activation of a seed of a class, and largest activation of a seed of the background"""


class RecurSeed(Method):
    """A DeepLabv3+ with a classifier of tags, and the average of its weights."""

    settings = RecurSeedConfig
    published = {  # noqa: RUF012, read only
        key: Published(lambda _: RecurSeedConfig(), names, "model.", classifier, with_average)
        for key, (names, classifier) in RELEASES.items()
    }
    reads = frozenset({"tags"})
    fewest_images = 2  # batch norm over the pooled features needs two images
    preset = "recurseed"
    classifies = True
    grid = (32, 0)  # the network resizes with align_corners=False
    network: RecurSeedNet

    def __init__(self, config: RecurSeedConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.network = RecurSeedNet(model, num_classes)
        self.average = AveragedModel(self.network, multi_avg_fn=self._average, use_buffers=True).requires_grad_(False)
        self.segments = self.mixes = False
        self.fewest_in_process = 1 if config.mix_from is None else 2  # a partner is another image

    def check_settings(self, config: Config, steps: int, epochs: float) -> None:
        settings = self.config
        if settings.segment_from >= epochs:
            raise UserError(
                f"method.segment_from is {settings.segment_from} epochs, but training ends after {epochs:.1f}: the decoder "
                "would not learn; give an earlier epoch, more --train.epochs or --train.steps"
            )
        if settings.mix_from is not None and settings.mix_from >= epochs:
            raise UserError(
                f"method.mix_from is {settings.mix_from} epochs, but training ends after {epochs:.1f}: give an earlier epoch, "
                "or null for no CertainMix"
            )
        if settings.mix_from is not None and settings.mix_from < settings.segment_from:
            raise UserError("method.mix_from comes before method.segment_from: CertainMix needs a decoder that has learnt")
        if settings.uncertain >= settings.certain:
            raise UserError("method.uncertain has to be less than method.certain")

    def begin_training(self, teacher: Method | None) -> None:
        super().begin_training(teacher)
        self.average.n_averaged.zero_()  # of --init; a resumed run has its own count again afterwards
        self.average.update_parameters(self.network)  # the first update is a copy

    def begin_step(self, step: int, epoch: float) -> None:
        self.segments = epoch >= self.config.segment_from
        self.mixes = self.config.mix_from is not None and epoch >= self.config.mix_from

    def after_step(self) -> None:
        self.average.update_parameters(self.network)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The losses of images (B, 3, H, W) with tags (B, C - 1): of the tags, of the decoder on the certain labels, and both
        again on the mix; all weights are 1, as in the published run's name."""
        images, tags, outside = batch["image"], batch["tags"], batch["outside"]
        maps, features = self.network.encode(images)
        activations, logits = self.network.tags(features), self.network.segment(maps, features)
        label = torch.full_like(outside, IGNORE_INDEX, dtype=torch.int64)  # a loss of 0 with all weights in the graph
        seeds = None
        if self.segments:
            seeds = self.seeds(images, tags, outside, maps, activations)
            label = seeds.label
        losses = {
            "tags": tag_loss(activations, tags, outside),
            "segmentation": coarse_cross_entropy(logits, label, align_corners=False),
        }
        if self.config.reconstruction:
            cam, _ = tagged(activation_maps(activations, outside), tags)
            term = reconstruction(cam, seeds.refined, tags) if seeds else 0 * cam.sum()
            losses["reconstruction"] = self.config.reconstruction * term
        if self.config.mix_from is None:
            return losses
        if not self.mixes:
            return losses | {"mixed_tags": 0 * losses["tags"], "mixed_segmentation": 0 * losses["segmentation"]}
        mixed = self.mixed(images, tags, outside, logits.detach())
        maps, features = self.network.encode(mixed["image"])
        logits = self.network.segment(maps, features)
        return losses | {
            "mixed_tags": tag_loss(self.network.tags(features), mixed["tags"], mixed["outside"]),
            "mixed_segmentation": coarse_cross_entropy(logits, mixed["label"], align_corners=False),
        }

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.average.module(images)

    def predict_and_classify(self, images: torch.Tensor, nearest: bool) -> tuple[torch.Tensor, torch.Tensor]:
        logits, activations = cast(RecurSeedNet, self.average.module).segment_and_classify(images)
        size = images.shape[-2:]
        logits = F.interpolate(logits.float(), size) if nearest else upsample(logits, size, align_corners=False)
        return logits, activations.float()

    @torch.no_grad()
    def seeds(
        self,
        images: torch.Tensor,
        tags: torch.Tensor,
        outside: torch.Tensor,
        maps: list[torch.Tensor],
        activations: torch.Tensor,
    ) -> Seeds:
        """RecurSeed's labels of images (B, 3, H, W) with tags (B, C - 1), from the encoder's maps and the classifier's
        activations (B, C - 1, h, w). outside: (B, H, W) bool."""
        config = self.config
        cam = grown = activation_maps(activations, outside)
        if config.correlate:
            grown = grown_maps(cam, self.network.correlated(maps), config.seed_thresholds, outside)
        refined, ids = refined_maps(images, grown, tags, config.refine, config.dilations)
        if config.renormalise:
            refined = over_largest(refined)
        return Seeds(cam, grown, refined, certain_labels(refined, ids, outside, config.certain, config.uncertain))

    @torch.no_grad()
    def mixed(self, images: torch.Tensor, tags: torch.Tensor, outside: torch.Tensor, logits: torch.Tensor) -> Batch:
        """CertainMix: where a partner of the batch is certain foreground, its pixel and its class replace those of the image.
        CutMix: a rectangle of the partner does. Returns `image`, `label`, `tags` and `outside`."""
        config, size = self.config, images.shape[-2:]
        probabilities = upsample(logits, size, align_corners=False).softmax(dim=1)[:, 1:] * ~outside[:, None]
        refined, ids = refined_maps(images, probabilities, tags, config.refine, config.dilations)
        label = certain_labels(refined, ids, outside, config.certain, config.uncertain)
        shift = int(torch.randint(1, len(images), ()))  # never the image itself
        partner, of_partner = label.roll(shift, dims=0), tags.roll(shift, dims=0)
        pasted = foreground(partner)
        if config.mix == "cut":
            pasted = cutmix_boxes(len(images), size, probability=1).to(label.device)
        if config.visible_tags:
            of_partner = visible_tags(partner, pasted, tags)
        return {
            "image": torch.where(pasted[:, None], images.roll(shift, dims=0), images),
            "label": torch.where(pasted, partner, label),
            "tags": torch.maximum(tags, of_partner),
            "outside": torch.where(pasted, outside.roll(shift, dims=0), outside),
        }

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`seeds/precision` and `seeds/recall` of the certain labels of the foreground; `seeds/labelled`, the share of pixels
        with a label, background included."""
        maps, features = self.network.encode(batch["image"])
        label = self.seeds(batch["image"], batch["tags"], batch["outside"], maps, self.network.tags(features)).label
        truth = batch["truth"].long()
        known, found, right = truth != IGNORE_INDEX, foreground(label), label == truth
        return {
            "seeds/precision": mean_where(right, found & known),
            "seeds/recall": mean_where(right, known & (truth > 0)),
            "seeds/labelled": mean_where(label != IGNORE_INDEX, ~batch["outside"]),
        }

    def pictures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The largest value of all tagged classes at each step from activations to labels, the labels, and a mix with its
        labels."""
        images, tags, outside = batch["image"], batch["tags"], batch["outside"]
        maps, features = self.network.encode(images)
        seeds = self.seeds(images, tags, outside, maps, self.network.tags(features))
        shown = {}
        for name, one in (("CAM", seeds.cam), ("SCG", seeds.grown)):
            shown[name] = resize(tagged(one, tags)[0].amax(dim=1, keepdim=True), images.shape[-2:], align_corners=False)[:, 0]
        shown |= {"PAMR": seeds.refined.amax(dim=1), "label": seeds.label}
        if self.config.mix_from is not None:
            mixed = self.mixed(images, tags, outside, self.network.segment(maps, features))
            shown |= {"mix": mixed["image"], "label of the mix": mixed["label"]}
        return shown

    def _average(self, averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], updates: torch.Tensor | int) -> None:
        decay = self.config.decay * (1 - math.exp(-float(updates) / self.config.ramp))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(weights), 1 - decay)
        else:  # counts of batches
            torch._foreach_copy_(list(averages), list(weights))
