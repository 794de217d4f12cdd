"""CC4S (TPAMI 2024): scribbles, the random walk, soft entropy, consistency on the neural eigenspace, colour constraint.

A stage of CC4S is a setting of the loss weights: see configs/cc4s.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import nn

from config import Config, MethodConfig, ModelConfig
from datasets.batch import Batch
from datasets.transforms import unit_colours
from errors import UserError
from losses.colour_constraint import colour_constraint
from losses.eigenspace import eigenspace_consistency
from losses.feature_consistency import feature_consistency
from losses.gated_crf import gated_crf
from losses.partial_cross_entropy import IGNORE_INDEX, partial_cross_entropy
from losses.soft_entropy import soft_entropy
from losses.tree_energy import tree_energy
from methods.base import Method, Published, Reads
from methods.views import View, crop_view, flip_view, require_grid
from models.cc4s import BaselineNet, RandomWalkNet
from models.layers import running_statistics_untouched
from ops.pixelwise import pixelwise
from ops.walk import spread_of_transitions

PUBLISHED_POSITIONS = 59 * 59  # of the walk at the published crop of 465


@dataclass
class CC4SConfig(MethodConfig):
    """CC4S: its network and the weights of its losses (0 = not used)."""

    name: str = "cc4s"
    """the method (methods/__init__.py lists them); --method.name NAME --help shows the settings of another"""
    network: Literal["baseline", "random_walk"] = "random_walk"
    """ASPP head without the walk, or the random-walk network"""
    shrink: PositiveInt = 1
    """the random walk runs on a map this many times smaller"""
    scaled_energies: bool = False
    """divide the walk's energies by the square root of the queries' width, as attention does; not in the published networks"""
    soft_entropy: NonNegativeFloat = 0.0
    """weight of the soft entropy"""
    consistency: NonNegativeFloat = 0.0
    """weight of the consistency between the image and a view. For the eigenspace with kl entries, this is the weight at the
    published crop (465), where the walk has 3481 positions; at N positions it is multiplied by N / 3481"""
    consistency_on: Literal["eigenspace", "x", "z"] = "eigenspace"
    """what to compare: transition matrices (eigenspace), or features before (x) or after (z) the walk, by mean squared error"""
    view: Literal["flip", "crop", "random"] = "random"
    """the view: the mirror image (flip), the top or bottom rows (crop), or one of them at random"""
    transition_axis: Literal["query", "key"] = "query"
    """axis of the softmax that turns the energy E into S(E)"""
    kl: Literal["entries", "rows"] = "entries"
    """the divergence is a mean over all N^2 entries (as released), or over N distributions"""
    trace: NonNegativeFloat = 0.01
    """weight of the trace term within the eigenspace consistency"""
    colour: NonNegativeFloat = 0.0
    """weight of the colour constraint"""
    gated_crf: NonNegativeFloat = 0.0
    """weight of the gated CRF loss, for comparison with CC4S"""
    tree_energy: NonNegativeFloat = 0.0
    """weight of the tree energy loss (TEL), for comparison with CC4S"""
    entropy: NonNegativeFloat = 0.0
    """weight of the entropy of all pixels (EM), for comparison with CC4S; the soft entropy leaves superpixel boundaries out"""


# Published name of a weight -> ours, by prefix.
RANDOM_WALK = {
    "model_sed.": "backbone.",
    "conv5a.": "reduce.",
    "PAM_Module.": "walk.",
    "conv51.": "refine.",
    "conv6.": "classifier.",
}
BASELINE = {
    **{f"layer5.aspp{n}.atrous_conv.": f"aspp.branches.{n - 1}.0." for n in range(1, 5)},
    **{f"layer5.aspp{n}.bn.": f"aspp.branches.{n - 1}.1." for n in range(1, 5)},
    "layer5.global_avg_pool.": "aspp.pooled.",
    "layer5.conv1.": "aspp.project.0.",
    "layer5.bn1.": "aspp.project.1.",
    "": "backbone.",
}


class CC4S(Method):
    """The baseline or random-walk network under the losses whose weights are not 0."""

    settings = CC4SConfig
    takes_decoder = True
    published = {  # noqa: RUF012, read only
        "PAM_Module.gamma": Published(lambda _: CC4SConfig(network="random_walk"), RANDOM_WALK, "model_sed.", "conv6.1.weight"),
        "layer5.conv1.weight": Published(lambda _: CC4SConfig(network="baseline"), BASELINE, "", "layer5.conv1.weight"),
    }

    def __init__(self, config: CC4SConfig, model: ModelConfig, num_classes: int):
        super().__init__()
        self.config = config
        if config.network == "baseline":
            if config.consistency:
                raise UserError("method.consistency needs the walk: set --method.network random_walk")
            self.network = BaselineNet(model, num_classes)
            self.fewest_images = 2  # batch norm over the pooled features needs two images
        else:
            self.network = RandomWalkNet(model, num_classes, config.shrink, config.scaled_energies)
        self.grid = (self.network.unit, 1)
        wanted: dict[Reads, float] = {"label": True, "boundary": config.soft_entropy, "superpixel": config.colour}
        self.reads = frozenset(name for name, weight in wanted.items() if weight)
        terms = {
            "cross_entropy": (1.0, _cross_entropy),
            "soft_entropy": (config.soft_entropy, _soft_entropy),
            "colour": (config.colour, _colour),
            "gated_crf": (config.gated_crf, _gated_crf),
            "entropy": (config.entropy, _entropy),
        }
        self.terms = {name: term for name, term in terms.items() if term[0]}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms whose weight is not 0, weighted, of images (B, 3, H, W) and labels (B, H, W); means over all processes."""
        losses = {}
        images = batch["image"]
        encoded, finer = self.network.encode(images)
        if self.config.consistency:
            features = self.network.reduce(encoded)
            walked, query, key = self.network.walk(features)
            logits = self.network.head(walked, finer, images)
            compared = {"eigenspace": (query, key), "x": (features,), "z": (walked,)}[self.config.consistency_on]
            losses["consistency"] = self.config.consistency * self._consistency(images, compared)
        else:
            logits = self.network.from_encoded(encoded, finer, images)
        means = {name: partial(masked_mean, batch) for name, (_, masked_mean) in self.terms.items()}
        for name, mean in pixelwise(means, logits, images.shape[-2:]).items():
            losses[name] = self.terms[name][0] * mean
        if self.config.tree_energy:
            unlabelled = batch["label"] == IGNORE_INDEX
            energy = tree_energy(logits, images, encoded, unlabelled, batch["outside"])
            losses["tree_energy"] = self.config.tree_energy * energy
        return losses

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def _consistency(self, images: torch.Tensor, compared: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The consistency of the image's maps `compared` with the maps of a view. The view's forward pass has no gradient and
        leaves the running statistics alone."""
        config, network = self.config, self.network
        view = self._draw_view(images)
        with torch.no_grad(), running_statistics_untouched(network):
            features = network.features(view.images)
            if config.consistency_on == "eigenspace":
                targets = network.walk.query_key(features)
            else:
                targets = (features if config.consistency_on == "x" else network.walk(features)[0],)
        ours, theirs = [view.of_image(m) for m in compared], [view.of_view(m) for m in targets]
        if config.consistency_on != "eigenspace":
            return feature_consistency(ours[0], theirs[0])
        (query, key), (view_query, view_key) = ours, theirs
        loss = eigenspace_consistency(
            query, key, view_query, view_key, axis=config.transition_axis, kl=config.kl, trace_weight=config.trace
        )
        if config.kl == "rows":
            return loss
        # A mean over N^2 entries falls as 1 / N: the same weight would be 20 times as strong at N = 169 as at N = 3481.
        positions = compared[0].shape[-2] * compared[0].shape[-1]
        return loss * (positions / PUBLISHED_POSITIONS)

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        if self.config.network == "baseline":
            return super().parts()
        walk = self.network.walk
        return super().parts() | {"query_key": [*walk.query_conv.parameters(), *walk.key_conv.parameters()]}

    def figures(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`walk/gamma`; `walk/energy_deviation`, the standard deviation of an image's energies; `walk/spread`, the number of
        positions over which a row of the transition matrix spreads. Means over the images."""
        if self.config.network == "baseline":
            return {}
        query, key = self.network.walk.query_key(self.network.features(batch["image"]))
        deviation, spread = spread_of_transitions(query, key)
        return {"walk/gamma": self.network.walk.gamma, "walk/energy_deviation": deviation, "walk/spread": spread}

    def check_settings(self, config: Config, steps: int, epochs: float) -> None:
        if self.config.consistency:
            for kind in ("flip", "crop") if self.config.view == "random" else (self.config.view,):
                require_grid(config.data.crop, self._compared_shrink(), kind)

    def _draw_view(self, images: torch.Tensor) -> View:
        kind = self.config.view
        if kind == "random":
            kind = random.choice(("flip", "crop"))
        return (flip_view if kind == "flip" else crop_view)(images, self._compared_shrink())

    def _compared_shrink(self) -> int:
        """Energies are compared on the shrunken map of the walk, features on the whole map."""
        return self.network.walk.shrink if self.config.consistency_on == "eigenspace" else 1


def _cross_entropy(batch: Batch, logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    label = batch["label"][some]
    return partial_cross_entropy(logits, label), (label != IGNORE_INDEX).sum()


def _soft_entropy(batch: Batch, logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    boundary = batch["boundary" if "boundary" in batch else "outside"][some]
    return soft_entropy(logits, boundary), (~boundary).sum()


def _entropy(batch: Batch, logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    outside = batch["outside"][some]
    return soft_entropy(logits, outside), (~outside).sum()


def _colour(batch: Batch, logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The colour constraint on the graphs of these images."""
    superpixel, ids, edges = batch["superpixel"][some], batch["superpixel_starts"], batch["edge_starts"]
    first, own = ids[some.start], slice(edges[some.start], edges[some.stop])
    superpixel = torch.where(superpixel < 0, superpixel, superpixel - first)
    count = ids[some.stop] - first
    return colour_constraint(logits, superpixel, batch["edges"][own] - first, batch["edge_weights"][own], count)


def _gated_crf(batch: Batch, logits: torch.Tensor, some: slice) -> tuple[torch.Tensor, torch.Tensor]:
    outside = batch["outside"][some]
    return gated_crf(logits, unit_colours(batch["image"][some]), outside), (~outside).sum()
