"""Checkpoints: the files that a stage writes for the next stage, for evaluation and for prediction."""

import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from config import Config, ModelConfig
from engine.published import convert, load_file
from engine.shared import read_shared, weights_file
from errors import Failure, UserError
from methods import SETTINGS, build_method
from methods.base import Method

VERSION = "0.2.0"  # of CHANGELOG.md; every checkpoint holds it


def save_checkpoint(path: Path, method: Method, config: Config, classes: tuple[str, ...], **state: object) -> None:
    """Writes the weights of `method`, its settings and the loop's `state` to `path`. The file is complete or unchanged, however
    the process ends. Raises Failure if the file cannot be written; an earlier file is intact then."""
    content = io.BytesIO()  # on a full disk, torch.save into a file raises a second error later
    torch.save(
        {"version": VERSION, "config": asdict(config), "classes": list(classes), "method": method.state_dict(), **state},
        content,
    )
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # syncs the new name, too
        os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Failure(f"{path}: not written ({error.strerror}); an earlier file is intact: correct this and rerun") from error


def read_checkpoint(path: str | Path) -> dict:
    """Returns the content of a checkpoint on the CPU: `config`, `classes`, `method`, and the loop's state if this project wrote
    the file. path: a file, or a shared model (`engine.shared`). A released checkpoint is converted (`engine.published`). Only
    tensors and plain values are read; no code is run. Raises UserError if the file is missing or is no checkpoint."""
    file = weights_file(path)
    if file.suffix == ".safetensors":
        return read_shared(file)
    content = load_file(file)
    kinds = {"config": dict, "classes": list, "method": dict}
    if isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return content
    return convert(content, path)


def load_weights(method: Method, content: dict, path: str | Path, classes: tuple[str, ...]) -> None:
    """Fills `method` from a checkpoint's content. Raises UserError if the checkpoint has other classes or another network."""
    check_classes(content["classes"], classes, path)
    wanted, given = method.state_dict(), content["method"]
    differing = sorted(wanted.keys() ^ given.keys()) or [k for k in wanted if wanted[k].shape != given[k].shape]
    if differing:
        raise UserError(f"{path}: holds another network ({describe(content['config'])}; first difference: {differing[0]})")
    method.load_state_dict(given)


def check_classes(trained: Sequence[str], classes: Sequence[str], path: str | Path) -> None:
    """Raises UserError if a checkpoint has another number of classes than the data, or the same classes in another order. Names
    may differ, because data sets have different names for a class, and a released file has no names."""
    if len(trained) != len(classes):
        raise UserError(
            f"{path}: trained on {len(trained)} classes, the data has {len(classes)} ({', '.join(classes[:4])} ...)"
        )
    if sorted(trained) == sorted(classes) and list(trained) != list(classes):
        raise UserError(f"{path}: trained on the data's classes in another order ({', '.join(trained)}): see classes.txt")


def load_model(path: str | Path) -> Method:
    """Returns the method of a checkpoint in evaluation mode, on the CPU, ready for `predict`. Its class names are `.classes`.

    path: a checkpoint file, the folder of a shared model, or hf:USER/NAME. Raises UserError if there is none.
    """
    return model_of(read_checkpoint(path), path)


def model_of(content: dict, path: str | Path) -> Method:
    """Returns the method as `load_model` does, from the content of the checkpoint at `path`."""
    try:
        settings = content["config"]["method"]
        method_config, model_config = SETTINGS[settings["name"]](**settings), ModelConfig(**content["config"]["model"])
    except (TypeError, KeyError) as error:
        version = content.get("version", "before 0.2.0")
        raise UserError(f"{path}: written by version {version} of this project, this is {VERSION} ({error})") from error
    method = build_method(method_config, model_config, len(content["classes"]))
    load_weights(method, content, path, tuple(content["classes"]))
    method.classes = tuple(content["classes"])
    return method.eval()


def describe(config: dict) -> str:
    """Returns a short description of a configuration's network."""
    method, model = config.get("method", {}), config.get("model", {})
    named = [method.get("name"), method.get("network"), model.get("backbone")]
    return ", ".join(str(value) for value in named if value is not None)
