"""A look inside a training run: the gradient of each loss term, and the method's figures and pictures of its network.

Every look repeats the run's first forward pass (the same images, dropout and view) with the present weights. A look changes
nothing in the run. On a GPU, a look needs the memory of a step and of one more gradient of the inspected weights.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import TrainConfig
from datasets.batch import Batch, collate, to_device
from datasets.files import UNLABELLED, read_label_or_none
from datasets.segmentation import SegmentationDataset
from datasets.transforms import denormalise
from engine.distributed import Process, autocast, mean_over_processes
from engine.loading import training_order
from engine.pictures import error_map, heat, picture_grid
from methods.base import Method
from models.layers import running_statistics_untouched

ROWS = 4  # most images of a picture


def first_batch(train_set: SegmentationDataset, masks: Path, settings: TrainConfig, process: Process) -> Batch:
    """Returns this process's part of the run's first forward pass, from `collate`, with `truth` (B, H, W) uint8: the dense
    masks from the folder `masks`, 255 where an image has no mask of its size."""
    keys = training_order(len(train_set), settings, 1, 0, process).batch(0)
    batch = collate([train_set[key] for key in keys])
    batch["truth"] = torch.stack([_truth(train_set, key, masks) for key in keys])
    return batch


def _truth(train_set: SegmentationDataset, key: tuple[int, int], masks: Path) -> torch.Tensor:
    """Returns the mask (H, W) uint8 of an image, augmented like the image."""
    index, (epoch, position) = train_set.index, key
    image, _ = train_set.read(position)
    mask = read_label_or_none(masks / f"{index.names[position]}.png")
    if mask is None or mask.shape != image.shape[:2]:
        mask = np.full(image.shape[:2], UNLABELLED, np.uint8)
    mask = np.where(mask < len(index.classes), mask, np.uint8(UNLABELLED))
    assert train_set.augment is not None, "training images are augmented"
    return torch.from_numpy(train_set.augment(image, {"label": mask}, train_set.rng(epoch, position))[1]["label"])


def look_inside(method: Method, batch: Batch, process: Process, precision: str, loss_scale: float = 1.0) -> dict[str, float]:
    """Returns `gradient/TERM/PART`, the L2 norm of the gradient of a weighted loss term at the weights of a part
    (`Method.parts`), and the figures of `Method.figures` under their own names.

    batch: from `first_batch`. loss_scale: factor of fp16 on losses before backward. All processes must call this together.
    Gradients and figures are means over the processes. The method is in training mode afterwards.
    """
    method.train()
    batch = to_device(batch, process.device)
    parts = {name: [weight for weight in weights if weight.requires_grad] for name, weights in method.parts().items()}
    found = {}
    with running_statistics_untouched(method):
        with autocast(process.device, precision):
            terms = method(batch)
        for term, loss in terms.items():
            for part, weights in parts.items():
                found[f"gradient/{term}/{part}"] = _gradient(loss * loss_scale, weights).norm() / loss_scale
        del terms, loss
        with torch.no_grad(), autocast(process.device, precision):
            figures = method.figures(batch)
    if figures:
        values = torch.stack([value.detach().float().reshape(()) for value in figures.values()])
        found |= dict(zip(figures, mean_over_processes(values), strict=True))
    return {name: value.item() for name, value in found.items()}


@torch.no_grad()
def draw_inside(method: Method, batch: Batch, device: torch.device, precision: str) -> Image.Image | None:
    """Returns `Method.pictures` of at most `ROWS` images of a batch from `first_batch`, as a picture grid. None if the method
    has no pictures. Only the main process calls this. The method is in training mode afterwards."""
    method.eval()
    batch = to_device(batch, device)
    with autocast(device, precision):
        shown = {"image": batch["image"], **method.pictures(batch)}
    method.train()
    if len(shown) == 1:
        return None
    rows = [[_tile(maps[row]) for maps in shown.values()] for row in range(min(ROWS, len(batch["image"])))]
    return picture_grid(rows, list(shown))


def _tile(values: torch.Tensor) -> np.ndarray:
    """Returns a normalised image, class ids, numbers or errors of one image as an array for `picture_grid`."""
    if values.ndim == 3:
        return denormalise(values[None])[0].cpu().numpy()
    array = values.cpu().numpy()
    if array.dtype == bool:
        return error_map(array, np.zeros_like(array))
    return heat(array) if array.dtype.kind == "f" else array.astype(np.uint8)


def _gradient(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the gradient of a loss at all weights as a float32 vector, a mean over processes; 0 without a graph."""
    if not loss.requires_grad or not weights:
        return loss.new_zeros(1)
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
    return mean_over_processes(torch.cat([gradient.float().reshape(-1) for gradient in gradients]))
