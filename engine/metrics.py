"""Scores from one confusion matrix."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from datasets.files import UNLABELLED


class ConfusionMatrix:
    """Counts of (truth, prediction) over a split; unlabelled pixels do not count."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.long)

    def update(self, prediction: torch.Tensor, label: torch.Tensor) -> None:
        """prediction, label: integer tensors of one shape, on one device; label is a class id or 255."""
        classes = len(self.counts)
        counted = label != UNLABELLED
        pairs = label[counted].long() * classes + prediction[counted].long()
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    def sum_over_processes(self, device: torch.device) -> None:
        """Adds up the counts of all processes; `device` is one that their backend can send from."""
        if dist.is_initialized():
            counts = self.counts.to(device)
            dist.all_reduce(counts)
            self.counts = counts.cpu()

    def scores(self, classes: Sequence[str]) -> dict:
        """As fractions of 1: `miou`, `dice` (means over classes that occur in truth or prediction), `pixel_accuracy`, and
        `iou` and `dice_per_class` by class name, None for a class that does not occur. NaN for a mean of nothing."""
        counts = self.counts.double()
        hit, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        iou = hit / (truth + predicted - hit)
        dice = 2 * hit / (truth + predicted)

        def by_name(values: torch.Tensor) -> dict[str, float | None]:
            return {name: None if value.isnan() else value.item() for name, value in zip(classes, values, strict=True)}

        return {
            "miou": iou.nanmean().item(),
            "dice": dice.nanmean().item(),
            "pixel_accuracy": (hit.sum() / counts.sum()).item(),
            "iou": by_name(iou),
            "dice_per_class": by_name(dice),
        }


def table(scores: dict) -> str:
    """Per-class IoU and Dice and their means in percent, as lines of text."""
    width = max(len("pixel accuracy"), *(len(name) for name in scores["iou"]))
    percent = lambda value: f"{'-':>7}" if value is None else f"{100 * value:7.2f}"  # noqa: E731
    lines = [f"{'class':<{width}}  {'IoU':>7}  {'Dice':>7}"]
    lines += [
        f"{name:<{width}}  {percent(iou)}  {percent(scores['dice_per_class'][name])}" for name, iou in scores["iou"].items()
    ]
    lines += [f"{'mean':<{width}}  {percent(scores['miou'])}  {percent(scores['dice'])}"]
    lines += [f"{'pixel accuracy':<{width}}  {percent(scores['pixel_accuracy'])}"]
    return "\n".join(lines)
