"""DMPLS: two heads, mixed pseudo-labels, and the Dice loss."""

import random

import pytest
import torch
import torch.nn.functional as F
from test_losses import gradients, normal
from training import LOOP

import train
from config import ModelConfig
from engine.checkpoint import load_model
from losses.dice import dice_loss
from methods import build_method
from methods.dmpls import DMPLSConfig

MODEL = ModelConfig("timm:mobilenetv3_small_050", "none")


def test_the_dice_loss_equals_a_loop_over_pixels():
    logits, label = (
        normal(2, 3, 4, 5).requires_grad_(),
        torch.randint(0, 2, (2, 4, 5), generator=torch.Generator().manual_seed(0)),
    )
    counted = torch.ones(2, 4, 5, dtype=torch.bool)
    counted[1, :2] = False
    p, terms = logits.softmax(1), []
    for c in range(3):  # no pixel has class 2
        both = squares = truths = 0
        for b in range(2):
            for y in range(4):
                for x in range(5):
                    if counted[b, y, x]:
                        t = float(label[b, y, x] == c)
                        both, squares, truths = both + p[b, c, y, x] * t, squares + p[b, c, y, x] ** 2, truths + t
        terms.append(1 - (2 * both + 1e-5) / (squares + truths + 1e-5))
    got, want = dice_loss(logits.softmax(1), label, counted), sum(terms) / 3
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, logits), gradients(want, logits))
    certain = F.one_hot(label, 3).movedim(-1, 1).double()
    assert dice_loss(certain, label, counted).item() == pytest.approx(0, abs=1e-6)


def batch_of(side=65):
    label = torch.full((2, side, side), 255)
    label[0, 4:8, 4:40], label[1, 20:30] = 1, 2
    outside = torch.zeros(2, side, side, dtype=torch.bool)
    outside[1, :, 50:] = True
    return {"image": torch.randn(2, 3, side, side), "label": label, "outside": outside}


@pytest.mark.parametrize("decoder", ["none", "lowlevel", "unet"])
def test_the_losses_are_those_of_both_heads_with_the_labels_of_their_mean(decoder):
    torch.manual_seed(0)
    model = ModelConfig("timm:mobilenetv3_small_050", "none", decoder=decoder)
    method, batch = build_method(DMPLSConfig(pseudo_labels=0.4), model, 3).eval(), batch_of()
    random.seed(3)
    losses = method(batch)
    random.seed(3)
    share = random.random()
    heads = method.network.both_heads(batch["image"])
    large = [F.interpolate(one, (65, 65), mode="bilinear", align_corners=True) for one in heads]
    assert torch.allclose(large[0], method.predict(batch["image"]), atol=1e-5)
    assert not torch.allclose(*heads, atol=1e-2)
    first, second = (one.softmax(1) for one in heads)
    mixed = (share * first + (1 - share) * second).argmax(1)
    stride = 64 // (heads[0].shape[-1] - 1)
    dice = [dice_loss(one, mixed, ~batch["outside"][:, ::stride, ::stride]) for one in (first, second)]
    entropy = [F.cross_entropy(one, batch["label"], ignore_index=255) for one in large]
    assert losses["cross_entropy"].item() == pytest.approx((sum(entropy) / 2).item(), rel=1e-5)
    assert losses["pseudo_labels"].item() == pytest.approx(0.4 * (sum(dice) / 2).item(), rel=1e-4)

    sum(method.train()(batch).values()).backward()
    assert all(weight.grad is not None for weight in method.parameters())
    assert all(part.weight.grad.any() for part in (method.network.aspp.project[0], method.network.other.aspp.project[0]))


@pytest.mark.slow
def test_dmpls_trains_resumes_and_is_evaluated(root, tmp_path, cli):
    flags = [*LOOP, "--config", "configs/dmpls/voc.yaml", "--model.backbone", MODEL.backbone, "--data.crop", "33"]
    code, _, error = cli(train.main, *flags, "--data.root", root, "--out", tmp_path / "run")
    assert code == 0, error
    method = load_model(tmp_path / "run/best.pt")
    assert isinstance(method.config, DMPLSConfig) and method.predict(torch.zeros(1, 3, 64, 64)).shape == (1, 7, 64, 64)
    code, _, error = cli(train.main, *flags, "--data.root", root, "--out", tmp_path / "run")
    assert code == 0, error
