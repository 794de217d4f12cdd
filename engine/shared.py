"""Shared models: a folder with weights as safetensors, settings, classes and a card, as on the Hugging Face Hub.

    FOLDER/model.safetensors, config.yaml, classes.txt, README.md       python -m tools.share writes it
    hf:USER/NAME                                                        the same folder in a repository of the Hub

No file of a shared model is a pickle, so reading one runs no code.
"""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file

from config import ModelConfig
from datasets.index import read_class_file
from errors import UserError
from methods import SETTINGS as METHODS

HUB = "hf:"
WEIGHTS, SETTINGS, CLASSES, CARD = "model.safetensors", "config.yaml", "classes.txt", "README.md"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def weights_file(checkpoint: str | Path) -> Path:
    """Returns the file with the weights: `checkpoint` itself, or that of a shared folder or repository (hf:USER/NAME), which is
    downloaded. Raises UserError if the folder is not a shared model, or if the download fails."""
    if str(checkpoint).startswith(HUB):
        return weights_file(_downloaded(str(checkpoint).removeprefix(HUB)))
    path = Path(checkpoint)
    if not path.is_dir():
        return path
    pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in PICKLES]
    if pickles and not (path / WEIGHTS).is_file():
        raise UserError(f"{path}: name a file in the folder, such as {path / pickles[0]}")
    missing = [name for name in (WEIGHTS, SETTINGS, CLASSES) if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path}: not a model that tools.share wrote: {missing[0]} is missing")
    if pickles:
        raise UserError(f"{path}: a shared model holds no pickle, but {pickles[0]} may be one: remove the file")
    return path / WEIGHTS


def read_shared(weights: Path) -> dict[str, Any]:
    """Returns a shared model as the content of a checkpoint: `config`, `classes`, `method`. Raises UserError for files of
    another project, or damaged ones."""
    folder = weights.parent
    try:
        config = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        state = load_file(weights)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable shared model ({type(error).__name__})") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("method", "model")):
        raise UserError(f"{folder / SETTINGS}: not of this project: `method` and `model` are expected")
    version = config.pop("version", None)
    _check_settings(config, f"{folder / SETTINGS} (written by version {version})")
    return {"version": version, "config": config, "classes": list(read_class_file(folder / CLASSES)), "method": state}


def _check_settings(config: dict[str, Any], where: str) -> None:
    """Raises UserError if `config["method"]` and `config["model"]` are not settings that this version of the project has: the
    file may come from anyone."""
    name = config["method"].get("name")
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"{where}: method.name {name} is not one of {', '.join(METHODS)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(METHODS[name], "method")
    parser.add_class_arguments(ModelConfig, "model")
    try:
        parser.parse_object({part: config[part] for part in ("method", "model")})
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def _downloaded(name: str) -> Path:
    """Returns the local folder of a repository of the Hub. Later calls find it without a network."""
    from huggingface_hub import snapshot_download  # takes half a second

    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, SETTINGS, CLASSES]))
    except Exception as error:  # the hub raises many kinds: no network, no such repository, no permission
        raise UserError(f"{HUB}{name}: not downloaded ({type(error).__name__}): check the name and the network") from error
