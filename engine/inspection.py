"""A look inside a training run: the gradient of each loss term, and what the method tells of its network.

The batch is the same at every look (the run's first), and so are dropout and views: what changes are the weights alone. A look
changes nothing in the run.
"""

from dataclasses import replace
from pathlib import Path

import torch

from config import TrainConfig
from datasets.segmentation import SegmentationDataset, collate, to_device
from engine.distributed import Process, autocast
from engine.loading import training_order
from methods.base import Method
from models.layers import running_statistics_untouched


def first_batch(
    train_set: SegmentationDataset, masks: Path, settings: TrainConfig, process: Process
) -> dict[str, torch.Tensor]:
    """This process's part of the run's first forward pass, as `collate` gives it; with `truth` (B, H, W) uint8, their dense
    masks, where the folder `masks` has one of every image."""
    keys = training_order(len(train_set), settings, 1, 0, process).batch(0)
    batch = collate([train_set[key] for key in keys])
    index = train_set.index
    files = tuple(masks / f"{name}.png" for name in index.names)
    if all(files[position].is_file() for _, position in keys):
        of_masks = SegmentationDataset(replace(index, labels=files), train_set.augment, seed=train_set.seed)
        batch["truth"] = torch.stack([of_masks[key]["label"] for key in keys])
    return batch


def look_inside(
    method: Method, batch: dict[str, torch.Tensor], process: Process, precision: str, loss_scale: float = 1.0
) -> dict[str, float]:
    """`gradient/TERM/PART`: the L2 norm of the gradient of a weighted loss term at the weights of a part (`Method.parts`); and
    the figures of `Method.figures`, by their own names.

    batch: of `first_batch`. loss_scale: what fp16 multiplies losses with before backward. All processes call this together,
    since a loss is a mean over all of their pixels; the gradient is of this process's images. The method is in training mode
    afterwards.
    """
    method.train()
    batch = to_device(batch, process.device)
    parts = {name: list(weights) for name, weights in method.parts().items()}
    found = {}
    with running_statistics_untouched(method):
        with autocast(process.device, precision):
            terms = method(batch)
        for term, loss in terms.items():
            weights = [weight for some in parts.values() for weight in some]
            gradients = iter(torch.autograd.grad(loss * loss_scale, weights, retain_graph=True, allow_unused=True))
            for part, some in parts.items():
                norms = [gradient.float().norm() for _ in some if (gradient := next(gradients)) is not None]
                norm = torch.stack(norms).norm() / loss_scale if norms else torch.zeros(())
                found[f"gradient/{term}/{part}"] = norm
        del terms, loss
        with torch.no_grad(), autocast(process.device, precision):
            found |= method.figures(batch)
    return {name: value.item() for name, value in found.items()}
