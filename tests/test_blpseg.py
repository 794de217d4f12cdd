"""BLPSeg: losses and local aggregation compared with plain loops, self-training, and which weights a loss trains."""

import math

import pytest
import torch
import torch.nn.functional as F
from watching import largest_tensor

from benchmarks import textbook
from config import ModelConfig
from errors import UserError
from losses.label_preference import label_preference
from losses.scribble_cross_entropy import scribble_cross_entropy
from methods import build_method
from methods.blpseg import BLPSeg, BLPSegConfig, self_training_labels
from methods.cc4s import CC4S
from models.local_aggregation import STRIDE as PATCH
from models.local_aggregation import PatchEmbedding, local_aggregation
from models.resnet import STRIDE
from ops import pairs, pixelwise

MODEL = ModelConfig(backbone="resnet18", weights="none")
CLASSES = 3


@pytest.fixture
def case():
    """Logits of both heads, and labels of two classes in the first two images. The third image has no label."""
    generator = torch.Generator().manual_seed(0)
    logits, scribble_logits = (
        torch.randn(3, c, 5, 6, generator=generator, dtype=torch.float64).requires_grad_() for c in (CLASSES, CLASSES + 1)
    )
    label = torch.full((3, 5, 6), 255)
    label[:2, 1, 1:4], label[1, 3, :3] = 1, 2
    outside = torch.zeros(3, 5, 6, dtype=torch.bool)
    outside[:, :, 5] = True
    return logits, scribble_logits, label, outside


def naive_label_preference(logits, scribble_logits, label, gamma):
    total = 0
    for image in range(len(logits)):
        top = bottom = 0
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                c = int(label[image, y, x])
                if c != 255:
                    p = logits[image, :, y, x].softmax(0)[c]
                    q = scribble_logits[image, :, y, x].softmax(0)[c]
                    w = (1 - p.detach() * q.detach()) ** gamma
                    top, bottom = top - w * p.log(), bottom + w
        total = total + (top / bottom if bottom else 0)
    return total / len(logits)


@pytest.mark.parametrize("gamma", [0, 2])
def test_label_preference_equals_a_loop_in_value_and_gradient(case, gamma):
    logits, scribble_logits, label, _ = case
    got, want = label_preference(*case[:3], gamma), naive_label_preference(logits, scribble_logits, label, gamma)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (got, want)))
    assert not label_preference(logits.detach(), scribble_logits, label, gamma).requires_grad, "scribble head: no gradient"


def test_pixels_known_to_both_heads_count_less(case):
    logits, scribble_logits, label, _ = case
    known = torch.zeros_like(logits)
    known[0, 1, 1, 1] = 100  # known; `liked` makes its weight 0, so the others count more
    liked = scribble_logits.detach().clone()
    liked[0, 1, 1, 1] = 100
    assert label_preference(known, liked, label, 2) > label_preference(known, torch.zeros_like(liked), label, 2)


def test_losses_without_any_label_are_zero_with_zero_gradient(case):
    logits, scribble_logits, _, _ = case
    loss = label_preference(logits, scribble_logits, torch.full((3, 5, 6), 255), 2)
    assert loss == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()
    loss = scribble_cross_entropy(scribble_logits, torch.full((3, 5, 6), 255), torch.ones(3, 5, 6).bool(), 0.02)
    assert loss == 0 and (torch.autograd.grad(loss, scribble_logits)[0] == 0).all()


def test_scribble_cross_entropy_equals_a_loop_in_value_and_gradient(case):
    _, scribble_logits, label, outside = case
    top = bottom = 0
    for place in (~outside).nonzero():
        image, y, x = place.tolist()
        c = min(int(label[image, y, x]), CLASSES)
        w = 0.02 if c == CLASSES else 1
        top, bottom = top - w * scribble_logits[image, :, y, x].log_softmax(0)[c], bottom + w
    got = scribble_cross_entropy(scribble_logits, label, outside, 0.02)
    torch.testing.assert_close(got, top / bottom)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scribble_logits)[0] for loss in (got, top / bottom)))


@pytest.mark.parametrize(("height", "width"), [(7, 9), (1, 5), (12, 4)])
@pytest.mark.parametrize(("held", "dtype"), [(1, torch.float64), (10**9, torch.float64), (50, torch.float32)])
def test_local_aggregation_equals_the_dense_formula(monkeypatch, height, width, held, dtype):
    monkeypatch.setitem(pairs.HELD, "cpu", held)
    generator = torch.Generator().manual_seed(0)
    logits, features = (torch.randn(2, c, height, width, generator=generator).to(dtype).requires_grad_() for c in (CLASSES, 4))
    got, want = local_aggregation(logits, features, 2.5), textbook.local_aggregation(logits, features, 2.5)
    torch.testing.assert_close(got, want)
    weight = torch.randn(got.shape, generator=generator).to(dtype)
    for ours, theirs in zip(*(torch.autograd.grad((m * weight).sum(), (logits, features)) for m in (got, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_local_aggregation_holds_no_square_matrix_in_training():
    logits, features = (torch.randn(1, d, 50, 50).requires_grad_() for d in (CLASSES, 8))
    largest = largest_tensor(lambda: local_aggregation(logits, features, 6.0).sum().backward())
    assert largest <= pairs.HELD["cpu"] < 2500**2


def test_local_aggregation_keeps_its_precision_under_autocast():
    """The features are bfloat16, but positions and energies are not rounded to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, 12, 40, generator=generator)
    features = (2 * torch.randn(1, 8, 12, 40, generator=generator)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = local_aggregation(logits, features, 6.0)
    want = textbook.local_aggregation(logits.double(), features.double(), 6.0)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_logits_are_float32_under_autocast():
    network = build_method(BLPSegConfig(width=16), MODEL, CLASSES).network
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.randn(2, 3, 64, 64)
        assert network.segment(images, network.features(images)).dtype == torch.float32


def test_patch_embedding_pads_the_border_with_zeros():
    images, embed = torch.randn(1, 3, 10, 5), PatchEmbedding(8)
    torch.testing.assert_close(embed(images), embed(F.pad(images, (0, 3, 0, 2))))


def test_local_aggregation_of_large_energies_stays_finite_and_in_range():
    logits = torch.rand(1, 1, 3, 400)
    features = torch.randn(1, 8, 3, 400) * 100
    got = local_aggregation(logits, features, 6.0)
    assert got.isfinite().all() and got.min() >= logits.min() - 1e-5 and got.max() <= logits.max() + 1e-5


def test_local_aggregation_weights_positions_by_distance():
    logits = torch.zeros(1, 1, 1, 30)
    logits[..., 0] = 1
    got = local_aggregation(logits, torch.zeros(1, 2, 1, 30), 6.0)[0, 0, 0]
    near = [[math.exp(-((a - b) ** 2) / 72) for a in range(30)] for b in range(30)]
    assert got.tolist() == pytest.approx([row[0] / sum(row) for row in near], rel=1e-4)


@pytest.mark.parametrize("size", [(64, 48), (65, 50), (33, 95)])
def test_features_and_patches_have_the_same_size_for_every_image_size(size):
    method = build_method(BLPSegConfig(), MODEL, CLASSES).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert method.network.features(images).shape[-2:] == PatchEmbedding(8)(images).shape[-2:]
        assert method.predict(images).shape == (1, CLASSES, *size)


def batch(size=64):
    generator = torch.Generator().manual_seed(0)
    label = torch.full((2, size, size), 255)
    label[:, 10:20, 10:50] = 1
    outside = torch.zeros(2, size, size, dtype=torch.bool)
    outside[:, :, -8:] = True
    return {
        "image": torch.randn(2, 3, size, size, generator=generator),
        "label": label, "outside": outside, "tags": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", [
    BLPSegConfig(), BLPSegConfig(gamma=0, sigma=0), BLPSegConfig(self_training_from=0, threshold=0.1),
])  # fmt: skip
def test_losses_are_finite_and_reach_every_weight(config, half):
    method = build_method(config, MODEL, CLASSES).train()
    method.begin_step(0, 0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = method(batch())
    assert set(losses) == {"label_preference", "scribble"}
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("self_training_from", [None, 0])
def test_a_batch_without_labels_has_no_label_preference_loss(self_training_from):
    method = build_method(BLPSegConfig(self_training_from=self_training_from, threshold=1), MODEL, CLASSES).train()
    method.begin_step(0, 0.0)
    losses = method(batch() | {"label": torch.full((2, 64, 64), 255)})
    assert losses["label_preference"] == 0 and losses["scribble"].isfinite()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_the_scribble_loss_trains_only_the_scribble_head():
    method = build_method(BLPSegConfig(), MODEL, CLASSES).train()
    method(batch())["scribble"].backward()
    reached = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"scribble_head"}


@pytest.mark.slow
def test_losses_in_groups_of_images_equal_losses_of_the_whole_batch(monkeypatch):
    """The losses also equal the formulas on full-size logits. The three images have different labels and outside pixels."""
    config = BLPSegConfig(gamma=1.3, sigma=3, unlabelled_weight=0.1, self_training_from=0, threshold=0.335)
    method = build_method(config, MODEL, CLASSES).eval().double()
    assert method.network.sigma == 3
    method.begin_step(0, 0.0)
    given = {name: torch.cat([value, value[:1]]) for name, value in batch().items()}
    given["image"] = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    given["label"][1, :40], given["label"][2, 40:, :9] = 0, 2
    given["outside"][2, :20] = True
    given["label"][given["outside"]] = 255
    per_image = (2 * CLASSES + 1) * 64 * 64
    found = {}
    for held in (1, 2 * per_image, 10**9):  # groups of one image; of two and one; of all three
        monkeypatch.setitem(pixelwise.HELD, "cpu", held)
        losses = method(given)
        found[held] = [*losses.values(), *torch.autograd.grad(sum(losses.values()), list(method.parameters()))]
    for values in zip(*found.values(), strict=True):
        for value_of_group in values[1:]:
            torch.testing.assert_close(value_of_group, values[0])
    features = method.network.features(given["image"])
    large = F.interpolate(method.network.scribble(features), (64, 64), mode="bilinear", align_corners=False)
    label = self_training_labels(method.predict(given["image"]), given["label"], given["outside"], given["tags"], 0.335)
    assert (label != given["label"]).any()
    want = label_preference(method.predict(given["image"]), large, label, 1.3)
    torch.testing.assert_close(losses["label_preference"], want)
    want = scribble_cross_entropy(large, given["label"], given["outside"], 0.1)
    torch.testing.assert_close(losses["scribble"], want)


def test_self_training_labels_follow_scribbles_tags_and_threshold():
    rows = {
        "a scribble wins": ([9.0, 0, 0], 2, False, 2),
        "certain": ([0, 9, 0], 255, False, 1),
        "certainly the first class, which has no tag": ([9, 0, 0], 255, False, 0),
        "not in the tags": ([0, 0, 9], 255, False, 255),
        "certain only among the tags": ([0, 9, 9], 255, False, 255),
        "no image": ([0, 9, 0], 255, True, 255),
        "uncertain": ([1, 0, 0], 255, False, 255),
    }
    logits, label, outside, want = (torch.tensor(column) for column in zip(*rows.values(), strict=True))
    got = self_training_labels(logits.T[None, :, None], label[None, None], outside[None, None], torch.tensor([[1.0, 0.0]]), 0.9)
    assert dict(zip(rows, got.flatten().tolist(), strict=True)) == dict(zip(rows, want.tolist(), strict=True))


def test_self_training_that_starts_after_the_last_step_is_refused():
    with pytest.raises(UserError, match="self_training_from is 600, but training ends after 600 steps"):
        build_method(BLPSegConfig(self_training_from=600), MODEL, CLASSES).check_settings(None, 600, 5.0)
    for start in (599, None):
        build_method(BLPSegConfig(self_training_from=start), MODEL, CLASSES).check_settings(None, 600, 5.0)


def test_large_image_limits_of_blpseg_and_cc4s_have_equal_positions():
    assert BLPSeg.large_image / PATCH**2 == CC4S.large_image / STRIDE**2


def test_self_training_begins_at_the_configured_step():
    method = build_method(BLPSegConfig(self_training_from=5), MODEL, CLASSES)
    begun = []
    for step in (0, 4, 5, 6):
        method.begin_step(step, 0.0)
        begun.append(method.self_training)
    assert begun == [False, False, True, True]
    resumed = build_method(BLPSegConfig(self_training_from=5), MODEL, CLASSES)
    resumed.begin_step(6, 0.0)
    assert resumed.self_training
    never = build_method(BLPSegConfig(self_training_from=None), MODEL, CLASSES)
    never.begin_step(10**6, 0.0)
    assert not never.self_training
