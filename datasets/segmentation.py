"""The `Dataset` that reads every index, and the order in which training draws its items."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datasets.batch import Item
from datasets.files import NO_SUPERPIXEL, UNLABELLED, read_edges, read_image, read_label, read_superpixel
from datasets.index import Index
from datasets.partners import Partners
from datasets.transforms import Augmentation, to_tensor
from errors import UserError

LABELLED_STREAM = (1,)
"""`SegmentationDataset.stream` of the labelled images, the key `labelled` of a batch."""
PARTNER_STREAM = (2,)
"""The stream of the partners, the key `partner` of a batch."""
STRONG_STREAM = (3,)
"""The stream of the strong views, the key `strong` of a batch."""


@dataclass(frozen=True)
class Superpixels:
    """The files that `tools.superpixels` writes into `folder`. graph: items have superpixel maps and edge lists. Without the
    graph, items have only boundaries, which are much faster to read."""

    folder: Path
    graph: bool = True

    def map(self, name: str) -> Path:
        """The superpixel map, a 16-bit PNG."""
        return self.folder / "map" / f"{name}.png"

    def boundary(self, name: str) -> Path:
        """The boundary map, an 8-bit PNG, 255 at boundaries."""
        return self.folder / "boundary" / f"{name}.png"

    def edges(self, name: str) -> Path:
        """The edge list with weights, npz."""
        return self.folder / "edges" / f"{name}.npz"

    def present(self, name: str) -> bool:
        """Whether all three files of an image exist."""
        return all(path.is_file() for path in (self.map(name), self.boundary(name), self.edges(name)))

    def check(self, names: tuple[str, ...]) -> None:
        """Raises UserError if a file of any name is missing."""
        missing = [name for name in names if not self.present(name)]
        if missing:
            raise UserError(
                f"superpixels of {missing[0]} not found in {self.folder} ({len(missing)} of {len(names)} images lack them): "
                f"run python -m tools.superpixels DATA_ROOT --split SPLIT --out {self.folder}"
            )


class SegmentationDataset(Dataset):
    """The images of an index with their maps, as `Item`s.

    With an augmentation, the key of an item is (epoch, position), from `TrainingOrder`. The seed and the key decide every
    random draw, so an item does not depend on its worker. Without an augmentation, the key is the position, and the item has
    the image's own size.
    An item has `label` if the index has labels. `tags` are the tags of the index, else the classes of the whole label, not of
    the crop. An augmentation adds `outside`. Superpixels add `boundary`; with `graph`, also the superpixel map and its edges.
    `labelled` is an item of the data set `labelled`, and `partner` is drawn by `partners`.
    """

    def __init__(
        self,
        index: Index,
        augment: Augmentation | None = None,
        superpixels: Superpixels | None = None,
        seed: int = 0,
        labelled: "SegmentationDataset | None" = None,
        stream: tuple[int, ...] = (),
        partners: Partners | None = None,
        strong: Augmentation | None = None,
    ):
        """labelled: a data set with its own augmentation. stream: `LABELLED_STREAM` or `PARTNER_STREAM` for a data set of these
        images, so that its random draws differ from the draws of the training images. strong: changes the colours of strong
        views."""
        self.index, self.augment, self.superpixels, self.seed = index, augment, superpixels, seed
        self.labelled, self.stream, self.partners, self.strong = labelled, stream, partners, strong

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_graph(self) -> bool:
        """Whether items have superpixel maps and edges."""
        return self.superpixels is not None and self.superpixels.graph

    def read(self, position: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads an image (H, W, 3) uint8 RGB and its maps (H, W): `label` uint8, `superpixel` uint16, `boundary` uint8 (0, 1).

        Raises UserError for an unreadable file, a map of another size than the image, or an id outside the classes.
        """
        name, path = self.index.names[position], self.index.images[position]
        image = read_image(path)
        maps = {}
        if self.superpixels is not None and self.superpixels.graph:
            maps["superpixel"] = read_superpixel(self.superpixels.map(name))
        if self.superpixels is not None:
            maps["boundary"] = (read_label(self.superpixels.boundary(name)) > 0).astype(np.uint8)
        for kind, array in maps.items():
            if array.shape != image.shape[:2]:
                raise UserError(f"{path} is {_size(image)}, its {kind} map {_size(array)}; delete it, run tools.superpixels")
        if self.index.labels is not None:
            maps["label"] = read_fitting_label(self.index.labels[position], image, len(self.index.classes))
        return image, maps

    def rng(self, epoch: int, position: int, stream: tuple[int, ...] | None = None) -> np.random.Generator:
        """Returns the generator of all random draws of an item, in its stream or another."""
        key = self.stream if stream is None else stream
        return np.random.default_rng(np.random.SeedSequence((self.seed, epoch, position), spawn_key=key))

    def sources(self, key: int | tuple[int, int]) -> list[tuple[Index, int]]:
        """Returns index and position of the image of an item, and of its labelled image. A partner is not among them: it is
        known only once the image is read."""
        epoch, position = key if isinstance(key, tuple) else (0, key)
        beside = [(self.labelled.index, self.labelled._draw(epoch, position)[0])] if self.labelled else []
        return [(self.index, position), *beside]

    def read_graph(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads an image's superpixel edges (M, 2) int64 and their weights (M,) float32. The data set must have a graph."""
        assert self.superpixels is not None
        return read_edges(self.superpixels.edges(self.index.names[position]))

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        cv2.setNumThreads(0)  # the workers already run in parallel
        epoch, position = key if isinstance(key, tuple) else (0, key)
        item = self._item(position, self.rng(epoch, position))
        if self.labelled:
            item["labelled"] = self.labelled._item(*self.labelled._draw(epoch, position))
        if self.strong:
            rng = self.rng(epoch, position, STRONG_STREAM)
            image = item["image"].permute(1, 2, 0).numpy()
            item["strong"] = torch.stack([to_tensor(self.strong.recolour(image, rng)) for _ in range(2)])
        if self.partners:
            rng = self.partners.dataset.rng(epoch, position)
            item["partner"] = self.partners.draw(self.index.names[position], item["label"].numpy(), rng)
        return item

    def _draw(self, epoch: int, position: int) -> tuple[int, np.random.Generator]:
        """Draws an image for the key `labelled` of an item: its position, and the generator of its augmentation."""
        rng = self.rng(epoch, position)
        return int(rng.integers(len(self))), rng

    def _item(self, position: int, rng: np.random.Generator) -> Item:
        image, maps = self.read(position)
        tags = self._tags(position, maps)
        if self.augment is not None:
            maps["outside"] = np.zeros(image.shape[:2], np.uint8)
            image, maps = self.augment(image, maps, rng)

        item: Item = {"image": to_tensor(image)}
        if "label" in maps:
            item["label"] = torch.from_numpy(maps["label"])
        if tags is not None:
            item["tags"] = torch.from_numpy(tags).float()
        if "outside" in maps:
            item["outside"] = torch.from_numpy(maps["outside"]).bool()
        if "boundary" in maps:
            item["boundary"] = torch.from_numpy(maps["boundary"]).bool()
        if "superpixel" in maps:
            superpixel = maps["superpixel"].astype(np.int32)
            superpixel[superpixel == NO_SUPERPIXEL] = -1
            edges, weights = self.read_graph(position)
            item["superpixel"] = torch.from_numpy(superpixel)
            item["edges"], item["edge_weights"] = torch.from_numpy(edges), torch.from_numpy(weights)
        return item

    def _tags(self, position: int, maps: dict[str, np.ndarray]) -> np.ndarray | None:
        """Returns the classes, except the first, that the image shows: (C - 1,) bool. None: neither tags nor a label."""
        if self.index.tags is not None:
            return self.index.tags[position]
        if "label" not in maps:
            return None
        return present_ids(maps["label"])[1 : len(self.index.classes)]


def read_fitting_label(path: Path, image: np.ndarray, num_classes: int) -> np.ndarray:
    """Reads the label (H, W) uint8 of an image (H, W, 3). Raises UserError if the label is unreadable, has another size, or has
    an id that is neither a class nor 255."""
    label = read_label(path)
    if label.shape != image.shape[:2]:
        raise UserError(f"{path} is {_size(label)}, its image {_size(image)}; both need the same size")
    outside = np.flatnonzero(present_ids(label)[num_classes:UNLABELLED])
    if outside.size:
        raise UserError(
            f"{path}: label id {outside[0] + num_classes} is outside the {num_classes} classes (ids 0 to {num_classes - 1}, "
            "255 = unlabelled)"
        )
    return label


def present_ids(label: np.ndarray) -> np.ndarray:
    """Returns which ids from 0 to 255 occur in a label (H, W) uint8: (256,) bool."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).reshape(-1) > 0  # takes half the time of np.bincount


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Yields this process's share of the batches `first` to `steps` - 1, as lists of (epoch, position).

    Shuffled epochs follow each other without a gap, so every batch is full for any number of images. The order depends only on
    the seed. `world`, the number of processes, divides `batch_size`. Process `rank` takes consecutive items of each batch.
    """

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1, first: int = 0):
        self.length, self.batch_size, self.steps, self.first = length, batch_size, steps, first
        self.rank, self.world = rank, world
        self._epoch = functools.lru_cache(maxsize=4)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(length))

    def __len__(self) -> int:
        return self.steps - self.first

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Returns this process's share of a batch."""
        share = self.batch_size // self.world
        start = number * self.batch_size + self.rank * share
        draws = (divmod(draw, self.length) for draw in range(start, start + share))
        return [(epoch, int(self._epoch(epoch)[place])) for epoch, place in draws]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, range(self.first, self.steps))
