"""Checkpoints released by the papers' authors: recognises the network in a file, and gives the weights our names.

Each method lists the published names of its weights (`Method.published`).

Only tensors and plain values are read. A file that needs code to be run is refused.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config, MethodConfig, ModelConfig
from datasets import CLASS_LISTS
from errors import UserError
from methods import METHODS

# (number of blocks in layer3, whether the blocks are bottlenecks) -> name.
RESNET_OF_BLOCKS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
    (36, True): "resnet152",
}


def load_file(path: str | Path) -> object:
    """Returns the content of a PyTorch file on the CPU: tensors, plain values, and numpy numbers and arrays of numbers.

    Raises UserError if the file is missing, unreadable, or holds anything else.
    """
    try:
        with _numpy_values():
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {path} not found: train the stage that writes it first") from error
    except pickle.UnpicklingError as error:
        # The rest of torch's message says how to read the file anyway, which would run its code.
        reasons = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        reason = (reasons or str(error).splitlines())[0][:160]
        raise UserError(f"{path}: not a readable checkpoint, or holds more than tensors and numbers ({reason})") from error
    except Exception as error:  # torch.load raises many kinds of errors for a bad file
        raise UserError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error


def convert(content: object, path: str | Path, shrink: int = 1) -> dict:
    """Returns a published file's content as a checkpoint of this project: `config`, `classes`, `method`.

    shrink: shrink of the random walk, which the weights do not show. Raises UserError for an unknown network.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    if not tensors or not state:
        raise UserError(f"{path}: neither a checkpoint of this project nor one released by the papers' authors")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    published = next((known[key] for known in (m.published for m in METHODS.values()) for key in known if key in state), None)
    if published is None and {"conv1.weight", "layer4.0.conv1.weight", "fc.weight"} <= state.keys():
        raise UserError(f"{path}: torchvision weights of a {_depth(state, '', path)}: give them as --model.weights {path}")
    if published is None:
        raise UserError(f"{path}: holds weights of an unknown network (first weight: {next(iter(state))})")
    names, classifier = published.names, published.classifier
    if classifier not in state or state[classifier].ndim != 4:
        raise UserError(f"{path}: incomplete, the weight {classifier} is missing or has another shape")
    settings = asdict(published.settings(state))
    if shrink != 1 and settings.get("network") != "random_walk":
        raise UserError(f"{path}: --shrink is for the random walk, and this network has none: leave out --shrink")
    if "shrink" in settings:
        settings["shrink"] = shrink
    classes = _classes(state[classifier].shape[0])
    model = ModelConfig(backbone=_depth(state, published.backbone, path), weights="none")
    config = asdict(Config(MethodConfig(settings["name"]), model=model)) | {"method": settings}
    ours = {}
    for key, value in state.items():
        prefix = next((old for old in names if key.startswith(old)), None)
        if prefix is not None:
            ours["network." + names[prefix] + key.removeprefix(prefix)] = value
    return {"config": config, "classes": classes, "method": published.complete(ours)}


def _depth(state: dict[str, torch.Tensor], prefix: str, path: str | Path) -> str:
    """Returns the name of the ResNet under `prefix`. Raises UserError for an unknown ResNet."""
    blocks = len({key.split(".")[1] for key in (k.removeprefix(prefix) for k in state) if key.startswith("layer3.")})
    depth = RESNET_OF_BLOCKS.get((blocks, f"{prefix}layer3.0.conv3.weight" in state))
    if depth is None:
        raise UserError(f"{path}: the backbone is not a known ResNet ({blocks} blocks in layer3)")
    return depth


def _classes(count: int) -> list[str]:
    """Returns the class names of the data set with `count` classes, or numbers if no or several data sets have this count."""
    lists = [names for names in CLASS_LISTS.values() if len(names) == count]
    return list(lists[0]) if len(lists) == 1 else [str(number) for number in range(count)]


@contextmanager
def _numpy_values() -> Iterator[None]:
    """Allows torch.load to read numpy scalars and arrays of float32, float64, int32, int64 and bool.

    A released CC4S file holds `best_pred` as a tuple of two numbers and an array (the release's train_seg_UR.py, line 231).
    numpy 2 moved the functions that make these values. A file names the old path or the new path.
    """
    functions = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    paths = [(call, f"numpy.{core}.multiarray.{name}") for name, call in functions.items() for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool")]
    allowed: list[Any] = [*paths, np.dtype, np.ndarray, *kinds]
    with torch.serialization.safe_globals(allowed):
        yield
