"""Encoders: maps, weights and decoders, and every method on several encoders."""

import json
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from training import LOOP

import train
from config import InferenceConfig, ModelConfig
from datasets.transforms import MEAN, STD
from engine.checkpoint import load_model
from engine.inference import predict_image
from errors import UserError
from methods import build_method
from methods.blpseg import BLPSegConfig
from methods.cc4s import CC4SConfig
from models.cc4s import RandomWalkNet
from models.encoder import IMAGENET_MEAN, IMAGENET_STD, FusedMaps, TimmEncoder, build_encoder
from models.pretrained import load_encoder
from models.random_walk import RandomWalk
from tools import export

LITE = "timm:efficientnet_lite0"
SMALL = {  # a small network of each kind and its natural strides
    "resnet18": (2, 4, 8, 16, 32),
    LITE: (2, 4, 8, 16, 32),
    "timm:mobilenetv3_small_050": (2, 4, 8, 16, 32),
    "timm:convnext_atto": (4, 8, 16, 32),
    "timm:swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "timm:vit_tiny_patch16_224": (16, 16, 16),
}
CLASSES = 5
SOURCES = ["resnet18", "timm:mobilenetv3_small_050", "timm:convnext_atto", "timm:vit_tiny_patch16_224"]


def batch(side=49):
    generator = torch.Generator().manual_seed(0)
    superpixel = torch.arange(2).int().view(2, 1, 1) * 4 + (torch.arange(side) * 4 // side).int().expand(2, side, side)
    return {
        "image": torch.randn(2, 3, side, side, generator=generator),
        "label": torch.randint(CLASSES, (2, side, side), generator=generator),
        "tags": torch.ones(2, CLASSES - 1),
        "outside": torch.zeros(2, side, side, dtype=torch.bool),
        "boundary": torch.zeros(2, side, side, dtype=torch.bool),
        "superpixel": superpixel,
        "edges": torch.tensor([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7]]),
        "edge_weights": torch.ones(6),
        "superpixel_starts": [0, 4, 8],
        "edge_starts": [0, 3, 6],
    }


# Maps


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(65, 97), (70, 51)])
def test_encoder_maps_have_the_declared_strides_and_widths(name, size):
    encoder = build_encoder(name, finest=2).eval()
    assert encoder.strides == SMALL[name]
    with torch.no_grad():
        maps = encoder(torch.randn(2, 3, *size))
    pairs = zip(encoder.widths, encoder.strides, strict=True)
    wanted = [(width, *(math.ceil(side / stride) for side in size)) for width, stride in pairs]
    assert [tuple(features.shape[1:]) for features in maps] == wanted


@pytest.mark.parametrize("name", ["resnet18", LITE, "timm:convnext_atto"])
@pytest.mark.parametrize("finest, strides", [(8, (8,)), (4, (4, 8))])
def test_a_dilated_encoder_has_one_map_per_stride(name, finest, strides):
    encoder = build_encoder(name, finest, held=8).eval()
    assert encoder.strides == strides
    with torch.no_grad():
        assert [features.shape[-1] for features in encoder(torch.randn(1, 3, 65, 65))] == [64 // s + 1 for s in strides]


def test_fused_maps_are_summed_from_the_coarsest_to_the_finest():
    encoder = build_encoder("timm:mobilenetv3_small_050", 4).eval()
    fused = FusedMaps(encoder, 16, 8).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 3, 65, 49))
        eighth, sixteenth, last = (fused.lateral[n](features) for n, features in enumerate(maps[1:]))
        coarse = sixteenth + F.interpolate(last, sixteenth.shape[-2:], mode="bilinear", align_corners=True)
        wanted = eighth + F.interpolate(coarse, eighth.shape[-2:], mode="bilinear", align_corners=True)
        torch.testing.assert_close(fused(maps, (65, 49)), wanted)


def test_an_encoder_normalises_images_by_its_own_statistics():
    """vit_tiny_patch16_224 was trained with mean 0.5 and standard deviation 0.5."""
    encoder = build_encoder("timm:vit_tiny_patch16_224", 8).eval()
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert np.allclose(MEAN, IMAGENET_MEAN) and np.allclose(STD, IMAGENET_STD), "what the batches are normalised by"
    with torch.no_grad():
        got = encoder((pixels - mean) / std)
        wanted = encoder.net((pixels - 0.5) / 0.5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# Weights


def test_the_installed_weights_are_the_published_weights(shared, fill):
    """The maps equal the check values in $SEG_SHARED/weights."""
    case = np.load(shared / "weights/efficientnet_lite0_check.npz")
    image = torch.as_tensor(fill.image(int(case["seed"]), 1, int(case["height"]), int(case["width"])))

    def maps(finest, held=None):
        encoder = build_encoder(LITE, finest, held).eval()
        load_encoder(encoder, LITE, "imagenet")
        with torch.no_grad():
            return [features.numpy() for features in encoder(image.float())]

    def assert_close(got, wanted):
        assert np.abs(got.reshape(-1) - wanted.reshape(-1)).max() <= 1e-4 * np.abs(wanted).max()

    for number, features in enumerate(maps(2)):
        assert_close(features.mean(axis=(2, 3)), case[f"mean{number}"])
    last = maps(8, 8)[-1]
    assert_close(last.mean(axis=(2, 3)), case["mean_stride8"])
    assert_close(last[0, :8, :3, :3], case["corner_stride8"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix, classifier", [("pth", {"fc.weight": torch.zeros(3, 4)}), ("safetensors", {})])
@pytest.mark.parametrize("name", SOURCES)
def test_an_encoder_loads_all_weights_from_a_file(name, suffix, classifier, tmp_path):
    source = build_encoder(name, 8)
    state = (source.net.model if isinstance(source, TimmEncoder) else source).state_dict()
    state = {key: torch.rand(value.shape) if value.is_floating_point() else value for key, value in state.items()}
    file = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state | classifier, file)
    encoder = build_encoder(name, 8)
    load_encoder(encoder, name, str(file))
    got = (encoder.net.model if isinstance(encoder, TimmEncoder) else encoder).state_dict()
    assert all(torch.equal(got[key], value) for key, value in state.items())


def test_wrong_encoder_weights_give_one_error_line(tmp_path, checkpoints, monkeypatch):
    torch.save(build_encoder("timm:convnext_atto", 8).net.model.state_dict(), tmp_path / "convnext.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    create = timm.create_model

    def without_a_network(name, pretrained=False, **settings):
        if pretrained:
            raise OSError("no route to host")  # without this stand-in, huggingface_hub tries for half a minute
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr("timm.create_model", without_a_network)
    for name, weights, wanted in (
        (LITE, tmp_path / "convnext.pth", r"convnext\.pth: not the weights of a timm:efficientnet_lite0"),
        (LITE, tmp_path / "list.pth", r"list\.pth: not a state dict"),
        (LITE, tmp_path / "text.safetensors", r"text\.safetensors: not a readable state dict"),
        (LITE, checkpoints / "seven.pt", r"seven\.pt: not a state dict; a checkpoint of this project is given as --init"),
        (LITE, "in22k", "in22k: no such file; choose none, imagenet, ra_in1k or a path"),
        (
            "timm:convnext_atto",
            "imagenet",
            r"huggingface\.co/timm/convnext_atto\.\w+ elsewhere and give its path as --model\.weights",
        ),
    ):
        with pytest.raises(UserError, match=wanted) as caught:
            load_encoder(build_encoder(name, 8), name, str(weights))
        assert "\n" not in str(caught.value)


# Names and combinations that do not exist


@pytest.mark.parametrize(
    "model, wanted",
    [
        (ModelConfig("resnet19"), "no such encoder; did you mean resnet18?"),
        (ModelConfig("efficientnet_lite0"), "did you mean timm:efficientnet_lite0?"),
        (ModelConfig("timm:efficientnet_light0"), "did you mean timm:efficientnet_lite0?"),
        (
            ModelConfig("timm:swin_tiny_patch4_window7_224", maps="dilated"),
            "cannot be held at stride 8: choose --model.maps fused",
        ),
        (ModelConfig("timm:vit_tiny_patch16_224", decoder="lowlevel"), "has no map of stride 4; choose none"),
        (ModelConfig("timm:mixer_s16_224"), "does not take images of any size"),
    ],
)
def test_an_impossible_network_is_refused_with_a_suggestion(model, wanted):
    with pytest.raises(UserError, match="(?s)" + wanted.replace("?", r"\?")) as caught:
        build_method(CC4SConfig(), model, CLASSES)
    assert "\n" not in str(caught.value)


def test_blpseg_refuses_the_decoders_of_cc4s():
    with pytest.raises(UserError, match="the networks of blpseg have no choice of decoder"):
        build_method(BLPSegConfig(), ModelConfig("resnet18", decoder="unet"), CLASSES)


# Networks on every encoder


UR, SS = CC4SConfig(soft_entropy=1), CC4SConfig(soft_entropy=1, consistency=30, colour=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("settings", [UR, SS, BLPSegConfig(width=16)], ids=["ur", "ss", "blpseg"])
def test_every_weight_gets_a_finite_gradient(name, settings):
    """Every weight has a finite gradient. Training on several processes needs this."""
    method = build_method(settings, ModelConfig(name), CLASSES).train()
    if isinstance(settings, CC4SConfig):
        nn.init.constant_(method.network.walk.gamma, 0.5)
    losses = method(batch())
    sum(losses.values()).backward()
    missing = [key for key, weight in method.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()]
    assert not missing and all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("decoder, stride", [("none", 8), ("lowlevel", 4), ("unet", 1)])
@pytest.mark.parametrize("name", ["resnet18", "timm:mobilenetv3_small_050", "timm:convnext_atto"])
@pytest.mark.parametrize("network", ["baseline", "random_walk"])
def test_each_decoder_gives_logits_of_its_stride(network, name, decoder, stride):
    settings = CC4SConfig(network=network, soft_entropy=1)
    method = build_method(settings, ModelConfig(name, decoder=decoder), CLASSES).train()
    images = batch()["image"]
    assert method.network.coarse(images).shape == (2, CLASSES, math.ceil(49 / stride), math.ceil(49 / stride))
    assert method.predict(images[..., :40]).shape == (2, CLASSES, 49, 40)
    sum(method(batch()).values()).backward()
    assert all(
        weight.grad is not None for key, weight in method.named_parameters() if "query" not in key and "key_conv" not in key
    )


def test_scaled_energies_are_divided_by_the_root_of_the_width():
    plain, scaled = RandomWalk(32), RandomWalk(32, scaled=True)
    scaled.load_state_dict(plain.state_dict())
    features = torch.randn(1, 32, 5, 4)
    (query, key), (scaled_query, scaled_key) = plain.query_key(features), scaled.query_key(features)
    torch.testing.assert_close(scaled_query * scaled_key, query * key / 4**0.5)
    torch.testing.assert_close(scaled(features)[1], scaled_query)


def test_the_random_walk_network_keeps_the_published_part_names():
    names = RandomWalkNet(ModelConfig("resnet18"), CLASSES).state_dict().keys()
    assert {key.split(".")[0] for key in names} == {"backbone", "reduce", "walk", "refine", "classifier"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_training_resumes_evaluates_and_exports_on_any_encoder(name, tiny, tmp_path, cli, monkeypatch):
    """All steps also work offline, because a checkpoint holds all weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flags = [*LOOP, "--method.soft_entropy", "1", "--data.root", tiny, "--model.backbone", name, "--train.lr", "0.001"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, _, error = cli(train.main, *flags, "--out", whole)
    assert code == 0, error
    with monkeypatch.context() as patch:
        original, steps = train.take_step, []

        def stop_early(run, step):
            if step == 3:
                raise KeyboardInterrupt
            steps.append(step)
            return original(run, step)

        patch.setattr(train, "take_step", stop_early)
        assert cli(train.main, *flags, "--out", stopped)[0] == 130
    code, output, error = cli(train.main, *flags, "--out", stopped)
    assert code == 0 and "resuming after step 2" in output, error
    got, wanted = (torch.load(run / "last.pt", weights_only=True)["method"] for run in (stopped, whole))
    assert all(torch.equal(got[key], value) for key, value in wanted.items())

    method = load_model(whole / "best.pt")
    picture = np.random.default_rng(0).integers(0, 256, (50, 63, 3), np.uint8)
    with torch.inference_mode():
        assert predict_image(method, picture, InferenceConfig()).shape == (7, 50, 63)
    code, _, error = cli(export.main, whole / "best.pt")
    assert code == 0, error
    assert json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])["loss"] > 0
