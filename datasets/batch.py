"""The items of a data set, one image each, and the batches that a method trains on."""

from typing import Any, Literal, TypedDict, cast

import torch
from torch.utils.data import default_collate

from datasets.transforms import normalise


class Batch(TypedDict, total=False):
    """A batch on the method's device. A key is absent if the data lack the map or if the method does not read it.

    An item of a data set has the same keys without the axis B. The item's image and label are uint8.
    """

    image: torch.Tensor
    """(B, 3, H, W) float32, normalised, channels last"""
    strong: torch.Tensor
    """(B, 2, 3, H, W) float32: the images twice more, each with its own change of the colours (strong views)"""
    label: torch.Tensor
    """(B, H, W) int64 class ids, 255 = unlabelled"""
    tags: torch.Tensor
    """(B, C - 1) float32: 1 for each class, except the first, that the image shows"""
    outside: torch.Tensor
    """(B, H, W) bool: True where the crop lies outside the image"""
    boundary: torch.Tensor
    """(B, H, W) bool: True at superpixel boundaries and outside the image"""
    superpixel: torch.Tensor
    """(B, H, W) int32 superpixel ids, distinct across the batch; -1 = none"""
    edges: torch.Tensor
    """(M, 2) int64: pairs of ids of adjacent superpixels, sorted by image"""
    edge_weights: torch.Tensor
    """(M,) float32: weights of the edges"""
    superpixel_starts: list[int]
    """B + 1 numbers: image i has superpixel ids starts[i] to starts[i + 1] - 1. A list: reading it never waits for a GPU"""
    edge_starts: list[int]
    """B + 1 numbers: image i has the edges starts[i] to starts[i + 1] - 1"""
    truth: torch.Tensor
    """(B, H, W) uint8: dense masks, 255 = unknown. Only `Method.figures` and `Method.pictures` get them"""
    labelled: "Batch"
    """B more images with labels, drawn at random from the labelled split"""
    partner: "Batch"
    """B labelled images, each drawn for an image of this batch, with `shared`"""
    shared: torch.Tensor
    """(B,) int64, of partners: a class that the crops of image and partner both show; -1 = none"""


Item = Batch
NESTED: tuple[Literal["labelled", "partner"], ...] = ("labelled", "partner")


def collate(items: list[Item]) -> Batch:
    """Stacks items into a batch on the CPU: images (uint8, channels last) and maps (label uint8). Superpixel ids become
    distinct across the batch, and edge lists are joined. `to_device` finishes the batch."""
    apart = ("image", "edges", "edge_weights", *NESTED)
    stacked = default_collate([{name: value for name, value in item.items() if name not in apart} for item in items])
    batch = cast(Batch, stacked)
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
        batch["superpixel_starts"], batch["edge_starts"] = superpixel_starts, edge_starts
    for stream in NESTED:
        if stream in items[0]:
            batch[stream] = collate([item[stream] for item in items])
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves a batch of `collate` to the device and finishes it as `Batch` describes. Images and labels are copied as bytes."""

    def moved(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    there = cast(Batch, {name: moved(value) for name, value in batch.items()})
    for name in ("image", "strong"):
        if name in there:
            there[name] = normalise(there[name])
    if "label" in there:
        there["label"] = there["label"].long()
    for stream in NESTED:
        if stream in batch:
            there[stream] = to_device(batch[stream], device)
    return there
