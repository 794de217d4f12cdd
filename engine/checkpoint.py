"""Checkpoints: what a stage leaves for the next, for evaluation and prediction."""

import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from config import Config, ModelConfig
from engine.published import convert, load_file
from errors import Failure, UserError
from methods import SETTINGS, build_method
from methods.base import Method


def save_checkpoint(path: Path, method: Method, config: Config, classes: tuple[str, ...], **state: object) -> None:
    """Writes `method`'s weights, what is needed to build it again and the loop's `state` to `path`, whole or not at all,
    however the process ends. Raises Failure if it cannot be written; what was there before is intact then."""
    content = io.BytesIO()  # a full disk makes of torch.save's own writing two errors, one of them its destructor's
    torch.save({"config": asdict(config), "classes": list(classes), "method": method.state_dict(), **state}, content)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the new name, too
        os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Failure(f"{path} could not be written ({error.strerror}); the checkpoint before it is intact") from error


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint, on the CPU: `config`, `classes`, `method`, and the loop's state where it is this project's
    own; a released one (`engine.published`) is converted. Only tensors and plain values are read, no code is run. Raises
    UserError where it is missing or neither."""
    content = load_file(path)
    kinds = {"config": dict, "classes": list, "method": dict}
    if isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return content
    return convert(content, path)


def load_weights(method: Method, content: dict, path: str | Path, classes: tuple[str, ...]) -> None:
    """Fills `method` from a checkpoint's content. Raises UserError if that is of other classes or another network."""
    check_classes(content["classes"], classes, path)
    wanted, given = method.state_dict(), content["method"]
    differing = sorted(wanted.keys() ^ given.keys()) or [k for k in wanted if wanted[k].shape != given[k].shape]
    if differing:
        raise UserError(f"{path}: holds another network ({describe(content['config'])}; first difference: {differing[0]})")
    method.load_state_dict(given)


def check_classes(trained: Sequence[str], classes: Sequence[str], path: str | Path) -> None:
    """Raises UserError if a checkpoint's classes are not as many as the data's, or the same in another order. Names alone
    may differ: data sets call one class by several, and a released file has none."""
    if len(trained) != len(classes):
        raise UserError(
            f"{path}: trained on {len(trained)} classes, the data has {len(classes)} ({', '.join(classes[:4])} ...)"
        )
    if sorted(trained) == sorted(classes) and list(trained) != list(classes):
        raise UserError(f"{path}: trained on the data's classes in another order ({', '.join(trained)}): see classes.txt")


def load_model(path: str | Path) -> Method:
    """The method of a checkpoint in evaluation mode, on the CPU, ready for `predict`; its class names are `.classes`.

    Raises UserError if the file is missing or no checkpoint of this project.
    """
    return model_of(read_checkpoint(path), path)


def model_of(content: dict, path: str | Path) -> Method:
    """`load_model` of a checkpoint's content that was read from `path`."""
    try:
        settings = content["config"]["method"]
        method_config, model_config = SETTINGS[settings["name"]](**settings), ModelConfig(**content["config"]["model"])
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: written by another version of this project ({error})") from error
    method = build_method(method_config, model_config, len(content["classes"]))
    load_weights(method, content, path, tuple(content["classes"]))
    method.classes = tuple(content["classes"])
    return method.eval()


def describe(config: dict) -> str:
    """A configuration's network in a few words."""
    method, model = config.get("method", {}), config.get("model", {})
    named = [method.get("name"), method.get("network"), model.get("backbone")]
    return ", ".join(str(value) for value in named if value is not None)
