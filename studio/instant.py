"""The instant loop: a linear classifier on features of places, fitted again after each stroke on all labelled pictures."""

import threading
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from datasets.files import UNLABELLED
from engine.metrics import normalised_entropy
from studio.features import Analyser, analysed, superpixels
from studio.folder import StudioFolder

MOST_PLACES = 400  # of a class in a picture
MOST_IN_ALL = 20_000
KEPT = 25  # pictures whose features stay in memory, 17 MB each
WEIGHT_DECAY = 1e-3
ITERATIONS = 25


@dataclass
class Prediction:
    """A prediction. Its size may differ from the picture's."""

    classes: np.ndarray
    """(H, W) uint8, the most likely class"""
    entropy: np.ndarray
    """(H, W) uint8, 0 (certain) to 255 (all classes with strokes equally likely)"""
    certainty: np.ndarray
    """(H, W) uint8, probability of the most likely class, 255 = 1"""


@dataclass
class _Seen:
    places: np.ndarray
    superpixels: np.ndarray


class InstantLoop:
    """Predicts pictures from the strokes of all pictures. All calls are taken one after the other."""

    def __init__(self, folder: StudioFolder):
        self.folder = folder
        self.analyser = Analyser()
        self.lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._samples: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
        self._fitted: tuple[dict[str, int], _Linear | None] = ({}, None)

    def predict(self, name: str) -> Prediction | None:
        """Returns the prediction of a picture; None until two classes have labels."""
        with self.lock:
            classifier = self._classifier()
            if classifier is None:
                return None
            seen = self._look(name)
            return _smooth(classifier(seen.places), seen.superpixels, classifier.present)

    def superpixels(self, name: str) -> np.ndarray:
        """Returns the superpixels of an analysed picture, (H, W) uint16."""
        with self.lock:
            return self._look(name).superpixels

    def whole(self, name: str) -> np.ndarray:
        """Returns `Analyser.whole` of a picture."""
        image = self.folder.image(name)
        with self.lock:
            return self.analyser.whole(image)

    def _look(self, name: str) -> _Seen:
        if name not in self._seen:
            image = analysed(self.folder.image(name))
            self._seen[name] = _Seen(self.analyser.places(image), superpixels(image))
        self._seen[name] = self._seen.pop(name)  # the last of the dict is the one used last
        while len(self._seen) > KEPT:
            del self._seen[next(iter(self._seen))]
        return self._seen[name]

    def _classifier(self) -> "_Linear | None":
        versions = {name: self.folder.document(name)["version"] for name in self.folder.labelled()}
        if versions != self._fitted[0]:
            for name, version in versions.items():
                if name not in self._samples or self._samples[name][0] != version:
                    self._samples[name] = (version, *_labelled_places(self._look(name).places, self.folder.label(name)))
            self._samples = {name: self._samples[name] for name in versions}
            self._fitted = (versions, _fit([sample[1:] for sample in self._samples.values()]))
        return self._fitted[1]


class _Linear:
    """A linear classifier of the classes that are present: those with labels."""

    def __init__(self, present: np.ndarray, mean: torch.Tensor, std: torch.Tensor, weight: torch.Tensor):
        self.present, self.mean, self.std, self.weight = present, mean, std, weight

    def __call__(self, places: np.ndarray) -> torch.Tensor:
        """(h, w, D) -> probabilities (h, w, number of present classes) float32."""
        height, width, _ = places.shape
        inputs = (torch.from_numpy(places).float().view(height * width, -1) - self.mean) / self.std
        return (F.pad(inputs, (0, 1), value=1) @ self.weight).softmax(dim=1).view(height, width, -1)


def _labelled_places(places: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (N, D) and classes (N,) of places with labels, at most `MOST_PLACES` of a class."""
    height, width, _ = places.shape
    rows, columns = np.nonzero(label != UNLABELLED)
    classes = label[rows, columns].astype(np.int64)
    cells = (rows * height // label.shape[0]) * width + columns * width // label.shape[1]
    pairs = np.unique(cells * 256 + classes)
    cells, classes = pairs // 256, pairs % 256
    kept = _some_of_each(classes, MOST_PLACES)
    return places.reshape(height * width, -1)[cells[kept]], classes[kept]


def _some_of_each(classes: np.ndarray, most: int) -> np.ndarray:
    """Returns positions in `classes` (N,), at most `most` random ones of each class."""
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(np.flatnonzero(classes == number))[:most] for number in np.unique(classes)]
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def _fit(samples: list[tuple[np.ndarray, np.ndarray]]) -> _Linear | None:
    """Returns the classifier with the least cross-entropy, where each class counts alike; None for fewer than two classes."""
    labels = np.concatenate([of_picture for _, of_picture in samples]) if samples else np.zeros(0, np.int64)
    present = np.unique(labels)
    if len(present) < 2:
        return None
    features = np.concatenate([of_picture for of_picture, _ in samples])
    chosen = _some_of_each(labels, MOST_IN_ALL // len(present))
    features, labels = features[chosen], labels[chosen]
    inputs = torch.from_numpy(features).float()
    mean, std = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-3)
    inputs = F.pad((inputs - mean) / std, (0, 1), value=1)
    targets = torch.from_numpy(np.searchsorted(present, labels))
    balance = len(labels) / (len(present) * torch.bincount(targets, minlength=len(present)).clamp_min(1))
    weight = torch.zeros(inputs.shape[1], len(present), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight, targets, balance) + WEIGHT_DECAY * (weight[:-1] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return _Linear(present, mean, std, weight.detach())


def _smooth(probabilities: torch.Tensor, superpixel: np.ndarray, present: np.ndarray) -> Prediction:
    """Resizes probabilities (h, w, K) of the classes `present` (K,) to the picture; takes their mean in each superpixel, an id
    of `superpixel` (H, W)."""
    maps = probabilities.permute(2, 0, 1)[None]
    large = F.interpolate(maps, superpixel.shape, mode="bilinear", align_corners=False)[0].flatten(1).numpy()
    ids = superpixel.reshape(-1).astype(np.int64)
    area = np.bincount(ids)
    means = np.stack([np.bincount(ids, one, minlength=len(area)) / area for one in large])
    classes = present[means.argmax(axis=0)].astype(np.uint8)
    entropy, certainty = in_bytes(normalised_entropy(torch.from_numpy(means))), in_bytes(torch.from_numpy(means.max(axis=0)))
    return Prediction(classes[superpixel], entropy[superpixel], certainty[superpixel])


def in_bytes(shares: torch.Tensor) -> np.ndarray:
    """Returns numbers from 0 to 1 as 0 to 255, uint8."""
    return (255 * shares).round().clip(0, 255).byte().numpy()
