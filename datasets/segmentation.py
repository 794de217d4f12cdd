"""The one `Dataset` that reads every index, its batches, and the order in which training draws from it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from datasets.files import NO_SUPERPIXEL, UNLABELLED, read_edges, read_image, read_label, read_superpixel
from datasets.index import Index
from datasets.transforms import Augmentation, normalise, to_tensor
from errors import UserError


@dataclass(frozen=True)
class Superpixels:
    """What `tools.superpixels` writes into `folder`, image by image; `graph`: whether items have the maps and edge lists, or
    the boundaries alone, which are much less to read."""

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
        """Whether all three files of an image are there."""
        return all(path.is_file() for path in (self.map(name), self.boundary(name), self.edges(name)))

    def check(self, names: tuple[str, ...]) -> None:
        """Raises UserError unless the files of every name are there."""
        missing = [name for name in names if not self.present(name)]
        if missing:
            raise UserError(
                f"superpixels of {missing[0]} not found in {self.folder} ({len(missing)} of {len(names)} images lack them): "
                f"run python -m tools.superpixels DATA_ROOT --split SPLIT --out {self.folder}"
            )


class SegmentationDataset(Dataset):
    """Images of an index with their maps.

    With an augmentation, an item is drawn by `(epoch, position)`, as `TrainingOrder` gives them: the same for the same
    seed, whichever worker draws it. Without, by position, at the image's own size.
    An item is a dict: `image` (3, H, W) uint8; where the index has labels, `label` (H, W) uint8; where it has tags or labels,
    `tags` (C - 1,) float32 of 0 and 1, the classes that the data set says the image shows, else those labelled in it (all of
    it, not only the crop); with an augmentation, `outside` (H, W) bool, True where there is no image; with superpixels,
    `boundary` (H, W) bool (True outside too), and with their graph `superpixel` (H, W) int32, `edges` (M, 2) int64 and
    `edge_weights` (M,) float32.
    """

    def __init__(
        self, index: Index, augment: Augmentation | None = None, superpixels: Superpixels | None = None, seed: int = 0
    ):
        self.index, self.augment, self.superpixels, self.seed = index, augment, superpixels, seed

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_graph(self) -> bool:
        """Whether items have superpixels and their edges."""
        return self.superpixels is not None and self.superpixels.graph

    def read(self, position: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The image (H, W, 3) uint8 RGB and its maps (H, W): `label` uint8, `superpixel` uint16, `boundary` uint8 (0 or 1).

        Raises UserError for a file that is unreadable, of another size than the image, or with an id outside the classes.
        """
        name, path = self.index.names[position], self.index.images[position]
        image = read_image(path)
        maps = {}
        if self.has_graph:
            maps["superpixel"] = read_superpixel(self.superpixels.map(name))
        if self.superpixels is not None:
            maps["boundary"] = (read_label(self.superpixels.boundary(name)) > 0).astype(np.uint8)
        for kind, array in maps.items():
            if array.shape != image.shape[:2]:
                raise UserError(f"{path} is {_size(image)} but its {kind} map is {_size(array)}")
        if self.index.labels is not None:
            maps["label"] = read_fitting_label(self.index.labels[position], image, len(self.index.classes))
        return image, maps

    def rng(self, epoch: int, position: int) -> np.random.Generator:
        """What an item's augmentation is drawn from."""
        return np.random.default_rng((self.seed, epoch, position))

    def read_graph(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The superpixels' edges (M, 2) int64 and their weights (M,) float32."""
        return read_edges(self.superpixels.edges(self.index.names[position]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        cv2.setNumThreads(0)  # the workers are the parallelism
        epoch, position = key if isinstance(key, tuple) else (0, key)
        image, maps = self.read(position)
        tags = self._tags(position, maps)
        if self.augment is not None:
            maps["outside"] = np.zeros(image.shape[:2], np.uint8)
            image, maps = self.augment(image, maps, self.rng(epoch, position))

        item = {"image": to_tensor(image)}
        if "label" in maps:
            item["label"] = torch.from_numpy(maps["label"])
        if tags is not None:
            item["tags"] = torch.from_numpy(tags).float()
        for name in maps.keys() & {"outside", "boundary"}:
            item[name] = torch.from_numpy(maps[name]).bool()
        if self.has_graph:
            superpixel = maps["superpixel"].astype(np.int32)
            superpixel[superpixel == NO_SUPERPIXEL] = -1
            edges, weights = self.read_graph(position)
            item |= {
                "superpixel": torch.from_numpy(superpixel),
                "edges": torch.from_numpy(edges),
                "edge_weights": torch.from_numpy(weights),
            }
        return item

    def _tags(self, position: int, maps: dict[str, np.ndarray]) -> np.ndarray | None:
        """Which classes but the first the image shows, (C - 1,) bool."""
        if self.index.tags is not None:
            return self.index.tags[position]
        if "label" not in maps:
            return None
        return present_ids(maps["label"])[1 : len(self.index.classes)]


def read_fitting_label(path: Path, image: np.ndarray, num_classes: int) -> np.ndarray:
    """The label (H, W) uint8 of an image (H, W, 3). Raises UserError if it is unreadable, of another size, or holds an id
    that is neither a class nor 255."""
    label = read_label(path)
    if label.shape != image.shape[:2]:
        raise UserError(f"{path} is {_size(label)}, its image {_size(image)}")
    outside = np.flatnonzero(present_ids(label)[num_classes:UNLABELLED])
    if outside.size:
        raise UserError(
            f"{path}: label id {outside[0] + num_classes} is outside the {num_classes} classes (ids 0 to {num_classes - 1}, "
            "255 = unlabelled)"
        )
    return label


def present_ids(label: np.ndarray) -> np.ndarray:
    """Which of the ids 0 to 255 a label (H, W) uint8 holds, (256,) bool."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).reshape(-1) > 0  # in half of np.bincount's time


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of items: images (channels last) and maps stacked; superpixel ids made distinct across the batch, the edge
    lists joined. `to_device` makes of it what a method takes.

    `superpixel` (B, H, W) int32, -1 = none; `edges` (M, 2) int64 pairs of ids; `edge_weights` (M,) float32. Image i has the
    ids from `superpixel_starts[i]` to `superpixel_starts[i + 1]`, and of the edges those from `edge_starts[i]` to
    `edge_starts[i + 1]`: lists of B + 1 ints, so that no device has to be asked for them.
    """
    apart = ("image", "edges", "edge_weights")
    batch = default_collate([{name: value for name, value in item.items() if name not in apart} for item in items])
    batch["image"] = torch.stack([item["image"].permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2)
    if "superpixel" in batch:
        edges, superpixel_starts, edge_starts = [], [0], [0]
        for superpixel, item in zip(batch["superpixel"], items, strict=True):
            count = int(torch.cat([superpixel.reshape(-1), item["edges"].reshape(-1)]).max()) + 1
            superpixel[superpixel >= 0] += superpixel_starts[-1]
            edges.append(item["edges"] + superpixel_starts[-1])
            superpixel_starts.append(superpixel_starts[-1] + count)
            edge_starts.append(edge_starts[-1] + len(item["edges"]))
        batch["edges"] = torch.cat(edges)
        batch["edge_weights"] = torch.cat([item["edge_weights"] for item in items])
        batch |= {"superpixel_starts": superpixel_starts, "edge_starts": edge_starts}
    return batch


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of `collate` as methods take it: on `device`, `image` (B, 3, H, W) float32 normalised and channels last, `label`
    (B, H, W) int64. Images and labels travel as bytes."""
    batch = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    return batch | {"image": normalise(batch["image"]), "label": batch["label"].long()}


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Endless shuffled epochs cut into batches `first` to `steps`, this process's share of each, as lists of (epoch, position).

    Epochs follow each other without a gap, so every batch is full however many images there are. The order depends on
    the seed alone; of each batch of `batch_size`, process `rank` of `world`, which divides it, takes its own consecutive share.
    """

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1, first: int = 0):
        self.length, self.batch_size, self.steps, self.first = length, batch_size, steps, first
        self.rank, self.world = rank, world
        self._epoch = functools.lru_cache(maxsize=4)(lambda epoch: np.random.default_rng((seed, epoch)).permutation(length))

    def __len__(self) -> int:
        return self.steps - self.first

    def batch(self, number: int) -> list[tuple[int, int]]:
        """This process's share of a batch."""
        share = self.batch_size // self.world
        start = number * self.batch_size + self.rank * share
        draws = (divmod(draw, self.length) for draw in range(start, start + share))
        return [(epoch, int(self._epoch(epoch)[place])) for epoch, place in draws]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self.batch, range(self.first, self.steps))
