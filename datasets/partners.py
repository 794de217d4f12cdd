"""Partners: labelled images that share a class with a training image (CISC-R)."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from datasets.batch import Item
from datasets.files import read_label
from datasets.index import Index
from datasets.transforms import to_tensor
from errors import UserError

if TYPE_CHECKING:
    from datasets.segmentation import SegmentationDataset

LEAST_SHARE = 0.03
"""An image shows a class if the class covers this share of the image's labelled pixels. A share of all pixels, as in the
release, would leave scribbled images without any class."""

DRAWS = 10  # most random places of a partner's crop


@dataclass(frozen=True)
class Partners:
    """Draws a partner and a class that both images show.

    dataset: the labelled images, with their augmentation. lists: the positions of the images that are listed under each class.
    first_class: whether class 0 may be the shared class.
    """

    dataset: "SegmentationDataset"
    lists: tuple[np.ndarray, ...]
    first_class: bool = True

    def draw(self, name: str, label: np.ndarray, rng: np.random.Generator) -> Item:
        """Returns the partner of the training image `name` whose crop has the label (H, W) uint8: `image`, `label`, `shared`.

        The partner is any image listed under a class of the crop, but never `name` itself; without such an image, it is any
        other image, and `shared` is -1. Its crop has a random place that shows a shared class. After `DRAWS` places without
        one, the crop lies around a pixel of a shared class.
        """
        index, augment = self.dataset.index, self.dataset.augment
        assert augment is not None, "training images are augmented"
        wanted = self._shown(label)
        listed = [position for number in wanted for position in self.lists[number] if index.names[position] != name]
        if not listed:
            wanted = wanted[:0]
            listed = [position for position, other in enumerate(index.names) if other != name]
        position = listed[rng.integers(len(listed))]
        image, maps = self.dataset.read(position)
        whole = maps["label"]

        linear = augment.linear(rng)
        pixels = np.argwhere(np.isin(whole, wanted))
        for attempt in range(DRAWS + 1 if len(pixels) else 1):
            around = pixels[rng.integers(len(pixels))] if attempt == DRAWS else None
            matrix = augment.placed(linear, whole.shape, rng, around)
            crop = augment.warp_map("label", whole, matrix)
            shared = np.intersect1d(wanted, self._shown(crop))
            if shared.size:
                break
        return {
            "image": to_tensor(augment.recolour(augment.warp_image(image, matrix), rng)),
            "label": torch.from_numpy(crop),
            "shared": torch.tensor(int(rng.choice(shared)) if shared.size else -1),
        }

    def _shown(self, label: np.ndarray) -> np.ndarray:
        return shown_classes(label, len(self.lists), self.first_class)


def shown_classes(label: np.ndarray, num_classes: int, first_class: bool = True) -> np.ndarray:
    """Returns the ids of the classes that a label (H, W) uint8 shows (`LEAST_SHARE`), in order; none if no pixel is labelled.
    first_class: whether class 0 may be among them."""
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).reshape(-1)[:num_classes]
    shown = (counts > 0) & (counts >= LEAST_SHARE * counts.sum())
    shown[0] &= first_class
    return np.flatnonzero(shown)


def class_lists(index: Index, first_class: bool) -> tuple[np.ndarray, ...]:
    """Returns the positions of the images that show each class, by reading all labels."""
    count = len(index.classes)
    with ThreadPoolExecutor() as pool:
        shown = list(pool.map(lambda file: shown_classes(read_label(file), count, first_class), index.label_files))
    return tuple(np.array([place for place, ids in enumerate(shown) if number in ids], int) for number in range(count))


def read_class_lists(file: Path, index: Index) -> tuple[np.ndarray, ...]:
    """Reads the lists that tools.reliable wrote, {class: [name, ...]}, as positions in `index`. Raises UserError for a file of
    another form, an unknown class or an unknown image."""
    position = {name: place for place, name in enumerate(index.names)}
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
        unknown = [name for name in lists if name not in index.classes]
        unknown += [name for names in lists.values() for name in names if name not in position]
    except FileNotFoundError as error:
        raise UserError(f"{file} not found: tools.reliable writes it (--data.partners.lists)") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: {{class: [image name, ...]}} is expected ({error})") from error
    if unknown:
        raise UserError(f"{file}: {unknown[0]} is neither a class nor a labelled image: run tools.reliable again")
    return tuple(np.array([position[name] for name in lists.get(kind, [])], int) for kind in index.classes)
