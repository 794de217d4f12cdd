"""Scores of volumes, for slices of scans: 3-D Dice and the 95% Hausdorff distance of each class, by MedPy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.files import UNLABELLED, opened_label
from datasets.index import SPACING, group_names, natural
from errors import UserError, extra

Distances = tuple[float, float, float]  # of slices, of rows and of columns
PIXELS: Distances = (1.0, 1.0, 1.0)


class Volumes:
    """Slices of a split, collected into volumes by their names."""

    def __init__(self, pattern: str, names: Iterable[str]):
        """pattern: a regular expression; images with an equal match are slices of one volume. Raises UserError for a bad
        pattern, or a name without a match."""
        self.names_of = group_names(names, pattern, "--volumes")
        self.slices: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        """image name -> prediction and truth, (H, W) uint8"""

    def check_sizes(self, label_of: Mapping[str, Path]) -> None:
        """Raises UserError if the labels of a volume, by image name, have several sizes."""
        for volume, names in self.names_of.items():
            sizes = set()
            for name in names:
                with opened_label(label_of[name]) as label:
                    sizes.add(label.size)
            if len(sizes) > 1:
                raise UserError(f"--volumes: the slices of {volume} have several sizes: the pattern joins several volumes")

    def spacing(self, root: Path, given: Distances | None) -> dict[str, Distances]:
        """Returns the distances in mm by volume: those given, for all volumes; or those of ROOT/spacing.json; or none, if the
        file is missing. Raises UserError for a damaged file, or a volume that it does not have."""
        if given is not None:
            return dict.fromkeys(self.names_of, given)
        file = root / SPACING
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return {volume: (float(z), float(y), float(x)) for volume in self.names_of for z, y, x in [found[volume]]}
        except KeyError as error:
            raise UserError(f"{file}: volume {error} is missing: add it, or give --spacing") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file}: {{volume: [slices, rows, columns]}} in mm is expected ({error})") from error

    def update(self, name: str, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Adds a slice: class ids (H, W). Where truth is 255, both count as class 0."""
        known = truth != UNLABELLED
        self.slices[name] = (prediction * known).astype(np.uint8), (truth * known).astype(np.uint8)

    def scores(self, classes: Sequence[str], spacing: Mapping[str, Distances]) -> dict:
        """Returns the scores of all classes but the first.

        spacing: distances by volume; a volume that is missing has `PIXELS`. `per_volume`: volume -> class -> `dice` (fraction
        of 1; None if neither truth nor prediction has the class) and `hd95` (in the unit of the spacing; None if only one of
        them, or none, has the class). `dice` and `hd95`: class -> `mean`, `deviation` (population) and `volumes` that count.
        `mean_dice`, `mean_hd95`: means of the classes' means.
        """
        binary = extra("medpy.metric.binary")
        per_volume = {}
        for volume in sorted(self.names_of, key=natural):
            prediction, truth = self._stacked(volume)
            per_volume[volume] = {
                name: _class_scores(binary, prediction == number, truth == number, spacing.get(volume, PIXELS))
                for number, name in enumerate(classes)
                if number
            }
        found: dict = {"per_volume": per_volume}
        for kind in ("dice", "hd95"):
            found[kind] = {name: _summary(scores[name][kind] for scores in per_volume.values()) for name in classes[1:]}
            means = [one["mean"] for one in found[kind].values() if one["mean"] is not None]
            found[f"mean_{kind}"] = float(np.mean(means)) if means else None
        return found

    def _stacked(self, volume: str) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth of a volume, (slices, H, W), in the natural order of the names."""
        parts = [self.slices[name] for name in sorted(self.names_of[volume], key=natural)]
        prediction, truth = (np.stack(kind) for kind in zip(*parts, strict=True))
        return prediction, truth


def table(scores: dict) -> str:
    """Returns the scores of `Volumes.scores`, with their `unit`, as lines of text: mean and deviation by class."""
    names = [*scores["dice"]]
    width = max(map(len, [*names, "mean"]))

    def cell(one: dict, factor: float) -> str:
        return f"{'-':>15}" if one["mean"] is None else f"{factor * one['mean']:7.2f} ±{factor * one['deviation']:6.2f}"

    lines = [f"{len(scores['per_volume'])} volumes", f"{'class':<{width}}  {'3-D Dice':>15}  {'HD95, ' + scores['unit']:>15}"]
    lines += [f"{name:<{width}}  {cell(scores['dice'][name], 100)}  {cell(scores['hd95'][name], 1)}" for name in names]
    dice, distance = scores["mean_dice"], scores["mean_hd95"]
    means = ("-" if dice is None else f"{100 * dice:.2f}", "-" if distance is None else f"{distance:.2f}")
    return "\n".join([*lines, f"{'mean':<{width}}  " + " ".join(f"{mean:>7}{'':8}" for mean in means)]).rstrip()


def _class_scores(binary, prediction: np.ndarray, truth: np.ndarray, spacing: Distances) -> dict:
    either = prediction | truth
    if not either.any():
        return {"dice": None, "hd95": None}
    if not (prediction.any() and truth.any()):
        return {"dice": 0.0, "hd95": None}
    box = tuple(slice(max(0, where.min() - 1), where.max() + 2) for where in either.nonzero())  # the rest has no surface
    dice = binary.dc(prediction, truth)
    return {"dice": float(dice), "hd95": float(binary.hd95(prediction[box], truth[box], voxelspacing=spacing))}


def _summary(values: Iterable[float | None]) -> dict:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "deviation": None, "volumes": 0}
    return {"mean": float(np.mean(known)), "deviation": float(np.std(known)), "volumes": len(known)}
