"""RecurSeed and CertainMix: labels from tags, the mix, the average of the weights, and training without a spatial label."""

import json
import math
import multiprocessing
import signal
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from test_chain import script
from test_distributed import assert_same_training, launch
from test_losses import gradients, normal
from test_mistakes import assert_refused
from training import LOOP, call_and_signal

import evaluate
import predict
import train
from benchmarks.seeds import mean_average_precision
from config import Config, InferenceConfig, ModelConfig
from datasets import open_index
from datasets.files import read_label, write_label
from datasets.transforms import normalise
from engine.checkpoint import load_model
from engine.inference import predict_image, restricted
from engine.inspection import draw_inside
from errors import UserError
from losses.certain_labels import certain_labels
from losses.tag_loss import reconstruction, tag_loss
from methods import build_method
from methods.recurseed import RecurSeedConfig
from ops.seeds import activation_maps, tagged
from tools import tags

MODEL = ModelConfig("timm:mobilenetv3_small_050", "none")


# Labels


def test_both_borders_of_the_certain_filter_are_inclusive():
    maps = torch.tensor([[[[0.55, 0.5499, 0.10, 0.1001]], [[0.0, 0.2, 0.05, 0.0]]]])
    outside = torch.zeros(1, 1, 4, dtype=torch.bool)
    ids = torch.tensor([[3, 7]])
    assert certain_labels(maps, ids, outside, 0.55, 0.10).tolist() == [[[3, 255, 0, 255]]]
    assert certain_labels(maps.flip(1), ids, outside, 0.55, 0.10).tolist() == [[[7, 255, 0, 255]]]
    outside[..., 0] = True
    assert certain_labels(maps, ids, outside, 0.55, 0.10).tolist() == [[[255, 255, 0, 255]]]


def test_only_tagged_classes_are_packed_and_an_image_without_tags_is_background():
    maps = torch.rand(3, 5, 2, 2)
    tags = torch.tensor([[0.0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    packed, ids = tagged(maps, tags)
    assert packed.shape == (3, 2, 2, 2)
    assert ids[0].tolist() == [2, 5] and ids[2, 0].item() == 3
    assert torch.equal(packed[0], maps[0, [1, 4]]) and torch.equal(packed[2, 0], maps[2, 2])
    assert (packed[1] == 0).all() and (packed[2, 1] == 0).all()
    label = certain_labels(packed, ids, torch.zeros(3, 2, 2, dtype=torch.bool), 0.0001, 0)
    assert (label[1] == 0).all() and set(label[0].unique().tolist()) <= {2, 5} and (label[2] == 3).all()
    assert tagged(maps, torch.zeros(3, 5))[0].shape == (3, 1, 2, 2)


def test_the_tag_loss_equals_a_loop_over_the_cells_inside_the_image():
    activations, tags = normal(2, 3, 4, 4).float().requires_grad_(), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    outside = torch.zeros(2, 16, 16, dtype=torch.bool)
    outside[1, :, 8:] = True
    terms = []
    for b, columns in ((0, 4), (1, 2)):
        for k in range(3):
            logit = activations[b, k, :, :columns].mean()
            terms.append(-F.logsigmoid(logit if tags[b, k] else -logit))
    want = torch.stack(terms).mean()
    got = tag_loss(activations, tags, outside)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, activations), gradients(want, activations))
    assert (activation_maps(activations.abs() + 1, outside)[1] > 0).any(dim=1).any(dim=0).tolist()[:4] == [
        True,
        True,
        False,
        False,
    ]


# The method


def batch_of(count=3, side=64, classes=4):
    tags = torch.zeros(count, classes - 1)
    tags[torch.arange(count), torch.arange(count) % (classes - 1)] = 1
    outside = torch.zeros(count, side, side, dtype=torch.bool)
    outside[0, :, -9:] = True
    return {"image": torch.randn(count, 3, side, side), "tags": tags, "outside": outside}


def method_at(epoch, **settings):
    settings = {"refine": 2, "dilations": (1, 2)} | settings
    method = build_method(RecurSeedConfig(**settings), MODEL, 4).train()
    method.begin_training(None)
    method.begin_step(0, epoch)
    return method


def seeds_of(method, batch):
    maps, features = method.network.encode(batch["image"])
    return method.seeds(batch["image"], batch["tags"], batch["outside"], maps, method.network.tags(features))


def test_labels_hold_no_untagged_class_and_nothing_outside():
    method, batch = method_at(6), batch_of()
    seeds = seeds_of(method, batch)
    assert seeds.cam.min() >= 0 and seeds.cam.max() <= 1 and seeds.grown.max() <= 1 + 1e-6
    for image in range(3):
        allowed = {0, 255, 1 + int(batch["tags"][image].argmax())}
        assert set(seeds.label[image].unique().tolist()) <= allowed
    assert (seeds.label[batch["outside"]] == 255).all()
    assert seeds_of(method, batch | {"tags": torch.zeros(3, 3)}).label[1].eq(0).all()


def test_before_its_epoch_a_term_is_exactly_0_under_its_name_and_every_weight_is_in_the_graph():
    for epoch, zeros in ((0, {"segmentation", "mixed_tags", "mixed_segmentation"}), (6, {"mixed_tags", "mixed_segmentation"})):
        method = method_at(epoch)
        losses = method(batch_of())
        assert list(losses) == ["tags", "segmentation", "mixed_tags", "mixed_segmentation"]
        assert {name for name, loss in losses.items() if loss.item() == 0} == zeros
        sum(losses.values()).backward()
        assert all(weight.grad is not None for weight in method.network.parameters())
    assert all(loss.item() > 0 for loss in method_at(16)(batch_of()).values())
    assert list(method_at(16, mix_from=None)(batch_of())) == ["tags", "segmentation"]


def test_the_segmentation_loss_alone_gives_the_classifier_no_gradient():
    method = method_at(6)
    losses = method(batch_of())
    weight = method.network.classifier.weight
    assert torch.autograd.grad(losses["segmentation"], weight, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(losses["tags"], weight)[0].any()


def test_pixel_label_and_tags_of_a_mix_come_from_one_source():
    method = method_at(16)
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    tags = torch.eye(3)
    logits = torch.full((3, 4, 8, 8), -9.0)
    logits[:, 0] = 0
    for image in range(3):
        logits[image, 0, :, 4 * (image % 2) : 4 * (image % 2) + 4] = -9
        logits[image, 1 + image, :, 4 * (image % 2) : 4 * (image % 2) + 4] = 9  # an object in one half
    mixed = method.mixed(images, tags, torch.zeros(3, 32, 32, dtype=torch.bool), logits)
    sources, certain = mixed["image"][:, 0].long(), 0
    for image in range(3):
        other = int(mixed["tags"][image].nonzero().flatten()[mixed["tags"][image].nonzero().flatten() != image])
        assert mixed["tags"][image].nonzero().flatten().tolist() == sorted([image, other])
        pasted = sources[image] == other
        assert (mixed["label"][image][pasted] == 1 + other).all()
        assert set(mixed["label"][image][~pasted].unique().tolist()) <= {0, 255, 1 + image}
        certain += int(pasted.sum())
    assert certain > 0


def test_the_average_follows_its_closed_form_and_is_what_predicts():
    method = method_at(0, decay=0.9, ramp=20)
    weight, average = method.network.classifier.weight, method.average.module.classifier.weight
    assert torch.equal(weight, average), "the first update is a copy"
    expected = average.clone()
    for update in range(1, 4):
        with torch.no_grad():
            weight.add_(1.0)
        method.after_step()
        decay = 0.9 * (1 - math.exp(-update / 20))
        expected = decay * expected + (1 - decay) * weight
        torch.testing.assert_close(average, expected)
    assert not average.requires_grad
    method.eval()
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.fill_(float("nan"))
        assert method.predict(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_the_average_starts_again_from_the_weights_of_init():
    """A checkpoint has an average and its count, and --init loads both."""
    method = method_at(0)
    for _ in range(3):
        method.after_step()
    with torch.no_grad():
        method.network.classifier.weight.add_(1.0)
    method.begin_training(None)
    assert torch.equal(method.network.classifier.weight, method.average.module.classifier.weight)
    assert method.average.n_averaged == 1


def test_predictions_in_the_padding_do_not_change_the_labels_of_a_mix():
    method = method_at(16, refine=10, dilations=(1, 2, 4))
    images, tags, outside = torch.rand(2, 3, 64, 64), torch.ones(2, 3), torch.zeros(2, 64, 64, dtype=torch.bool)
    outside[:, :, 32:] = True
    logits = torch.full((2, 4, 16, 16), -9.0)
    logits[:, 0] = 9
    padded = logits.clone()
    padded[:, :, :, 9:] = torch.tensor([-9.0, 9, -9, -9])[
        :, None, None
    ]  # class 1, but for the column that is resized into the image
    for one in (logits, padded):
        label = method.mixed(images, tags, outside, one)["label"]
        assert (label[:, :, :32] == 0).all() and (label[:, :, 32:] == 255).all()


def test_objects_pasted_into_the_padding_count_for_the_tags_of_the_mix():
    method, size = method_at(16, refine=0), 64
    images, tags, outside = torch.zeros(2, 3, size, size), torch.eye(2, 3), torch.zeros(2, size, size, dtype=torch.bool)
    outside[0, :, 32:] = True  # the object of image 1 lies where image 0 has padding
    logits = torch.full((2, 4, 16, 16), -9.0)
    logits[:, 0, :, :8], logits[0, 0, :, 8:], logits[1, 2, :, 8:] = 9, 9, 9
    mixed = method.mixed(images, tags, outside, logits)
    assert (mixed["label"][0, :, 40:] == 2).all() and not mixed["outside"][0, :, 40:].any()
    assert torch.equal(mixed["outside"][1], outside[1])
    assert mixed["label"][0][mixed["outside"][0]].eq(255).all()


def test_a_mix_of_rectangles_and_visible_tags():
    method = method_at(16, mix="cut", visible_tags=True, refine=0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 64, 64)
    tags = torch.eye(4)[:, :3]
    logits = torch.full((4, 4, 64, 64), -9.0)
    logits[:, 0] = 0
    for image in range(3):
        logits[image, 0, :, :32], logits[image, 1 + image, :, :32] = -9, 9  # an object in the left half; image 3 has none
    visible = 0
    for _ in range(20):
        mixed = method.mixed(images, tags, torch.zeros(4, 64, 64, dtype=torch.bool), logits)
        for image in range(4):
            pasted = mixed["image"][image, 0] != image
            rows, columns = pasted.nonzero().T
            box = torch.zeros_like(pasted)
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            assert torch.equal(pasted, box) and 0.01 < box.float().mean() < 0.5
            other = int(mixed["image"][image, 0][pasted][0])
            seen = {image} | ({other} if pasted[:, :32].any() else set())
            assert mixed["tags"][image].nonzero().flatten().tolist() == sorted(seen - {3})
            visible += other not in seen
    assert visible > 0, "some rectangle shows no object"


def test_the_reconstruction_loss_equals_a_loop_and_trains_the_classifier_alone_of_the_heads():
    cam, refined, tags = torch.rand(2, 2, 2, 2).requires_grad_(), torch.rand(2, 2, 4, 4), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    with torch.no_grad():
        cam[1, 1], refined[1, 1] = 0, 0  # a spare map
    total = 0
    for image, slot in ((0, 0), (0, 1), (1, 0)):
        for i in range(2):
            for j in range(2):
                target = refined[image, slot, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
                total = total + (cam[image, slot, i, j] - target).abs() / 4
    torch.testing.assert_close(reconstruction(cam, refined, tags), total / 3)
    torch.testing.assert_close(gradients(reconstruction(cam, refined, tags), cam), gradients(total / 3, cam))
    assert reconstruction(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4), torch.zeros(1, 3)) == 0

    method = method_at(6, reconstruction=0.5)
    losses = method(batch_of())
    assert losses["reconstruction"] > 0
    assert torch.autograd.grad(losses["reconstruction"], method.network.classifier.weight, retain_graph=True)[0].any()
    before = method_at(0, reconstruction=0.5)(batch_of())
    assert before["reconstruction"] == 0 and before["reconstruction"].requires_grad


def test_pictures_show_every_step_from_activations_to_the_mix():
    method, batch = method_at(16), batch_of()
    shown = method.eval().pictures(batch)
    assert list(shown) == ["CAM", "SCG", "PAMR", "label", "mix", "label of the mix"]
    assert all(maps.shape == (3, 64, 64) for name, maps in shown.items() if name != "mix")
    assert all(shown[name].min() >= 0 and shown[name].max() <= 1 + 1e-4 for name in ("CAM", "SCG", "PAMR"))
    here = (shown["mix"][:, None] == batch["image"][None]).all(dim=2).any(dim=1)
    assert shown["mix"].shape == batch["image"].shape and here.all(), "each pixel is one of an image"
    assert draw_inside(method, batch | {"truth": shown["label"]}, torch.device("cpu"), "fp32").width > 6 * 192
    assert list(method_at(6, mix_from=None).eval().pictures(batch)) == ["CAM", "SCG", "PAMR", "label"]


def test_mean_average_precision_of_tags():
    likely = np.array([[0.9, 0.2], [0.8, 0.1], [0.1, 0.3]])
    present = np.array([[True, False], [False, False], [True, False]])
    assert mean_average_precision(likely, present) == pytest.approx((1 + 2 / 3) / 2)


# Inference


class Classifying:
    """Stands in for a method with a classifier of tags: each map is a convolution of the image."""

    grid, classifies = (16, 0), True

    def predict_and_classify(self, images, nearest):
        draw = torch.Generator().manual_seed(0)
        logits = F.conv2d(images, torch.randn(4, 3, 4, 4, generator=draw), stride=4)
        activations = F.conv2d(images, torch.randn(3, 3, 16, 16, generator=draw) / 16, stride=16)
        size = images.shape[-2:]
        logits = F.interpolate(logits, size) if nearest else F.interpolate(logits, size, mode="bilinear")
        return logits, activations

    def predict(self, images):
        return self.predict_and_classify(images, nearest=False)[0]


RELEASED = InferenceConfig(scales=(1.0, 0.5, 1.5), flip=True, nearest=True, tag_gate=0.5, seed_scores=True)


@pytest.mark.parametrize("allowed", [None, [True, False, True, False], [True, False, False, False]])
def test_seed_scores_equal_the_steps_of_the_release_in_a_loop_over_the_views(allowed):
    image = torch.randint(256, (3, 40, 52), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    maps, tags = [], []
    for scale in (1.0, 0.5, 1.5):
        height, width = round(40 * scale), round(52 * scale)
        view = F.interpolate(normalise(image)[None], (height, width), mode="bilinear", align_corners=True)
        for flipped in (False, True):
            one = view.flip(-1) if flipped else view
            logits, activations = Classifying().predict_and_classify(F.pad(one, (0, -width % 16, 0, -height % 16)), True)
            centres = [torch.arange(side) * 16 + 8 for side in activations.shape[-2:]]
            inside = activations[0][:, centres[0] < height][:, :, centres[1] < width]
            tags.append(inside.mean(dim=(1, 2)).sigmoid())
            probabilities = logits[..., :height, :width].softmax(1)
            maps.append(F.interpolate(probabilities.flip(-1) if flipped else probabilities, (40, 52)))
    mean = torch.stack(maps).mean(0)[0]
    kept = torch.stack(tags).mean(0) >= 0.5
    assert kept.any() and not kept.all()
    if allowed is not None:
        kept = torch.tensor(allowed[1:])
    seeds = torch.stack([mean[1 + k] / (mean[1 + k].max() + 1e-5) if kept[k] else 0 * mean[0] for k in range(3)])
    expected = torch.cat([(1 - seeds.amax(0, keepdim=True)) ** 2, seeds])
    given = None if allowed is None else np.array(allowed)
    got = predict_image(Classifying(), image.permute(1, 2, 0).numpy(), RELEASED, allowed=given)
    torch.testing.assert_close(got, expected / expected.sum(0))


def test_settings_of_the_inference_are_named_and_need_a_classifier(tiny, checkpoints, tmp_path, cli):
    arguments = ["--checkpoint", checkpoints / "seven.pt", "--data.root", tiny, "--out", tmp_path / "out"]
    assert_refused(cli(evaluate.main, *arguments, "--inference.tag_gate", "0.3"), "tag_gate needs a network that")
    assert_refused(cli(evaluate.main, *arguments, "--inference.seed_scores"), "seed_scores requires --inference.tag_gate")
    assert_refused(cli(evaluate.main, *arguments, "--inference.background_power", "3"), "requires --inference.seed_scores")


@pytest.mark.slow
def test_the_preset_is_written_down_and_pseudo_labels_hold_tags_alone(root, tmp_path, cli):
    index = open_index(root, "val", "SegmentationClass")
    method = build_method(RecurSeedConfig(), MODEL, len(index.classes))
    config = asdict(Config(method.config, model=MODEL))
    torch.save({"config": config, "classes": list(index.classes), "method": method.state_dict()}, tmp_path / "model.pt")
    shared = ["--checkpoint", tmp_path / "model.pt", "--preset", "recurseed"]
    code, _, error = cli(evaluate.main, *shared, "--data.root", root, "--out", tmp_path / "scores")
    assert code == 0, error
    conditions = json.loads((tmp_path / "scores/metrics.json").read_text())["conditions"]
    assert conditions["inference"]["tag_gate"] == 0.34 and conditions["inference"]["seed_scores"] is True
    assert conditions["crf"] == "torch" and conditions["crf_parameters"]["bilateral_sxy"] == 67
    code, _, error = cli(evaluate.main, *shared, "--crf", "none", "--data.root", root, "--out", tmp_path / "scores")
    assert code == 0, error

    assert cli(tags.main, root, "--splits", "[val]")[0] == 0
    labels = ["--images", root, "--split", "val", "--classes", "tags", "--pseudo_labels", "--threshold", "0"]
    code, _, error = cli(predict.main, *shared, *labels, "--out", tmp_path / "labels")
    assert code == 0, error
    tagged = open_index(root, "val").tags
    for name, of_image in zip(index.names, tagged, strict=True):
        found = set(read_label(tmp_path / f"labels/{name}.png").flatten().tolist())
        assert found <= {0, *(1 + of_image.nonzero()[0]).tolist()}


def test_a_class_that_is_not_allowed_is_0_in_the_scores_too():
    probabilities = torch.rand(1, 4, 5, 6).softmax(1)
    for config in (InferenceConfig(), RELEASED):
        found = restricted(probabilities, torch.tensor([[False, True, False, True]]), config)
        assert (found[:, [0, 2]] == 0).all()
        torch.testing.assert_close(found.sum(1), torch.ones(1, 5, 6))


@pytest.mark.parametrize("settings, message", [
    ({}, "segment_from is 5.0 epochs, but training ends after 2.0"),
    ({"segment_from": 1, "mix_from": 0.5}, "mix_from comes before"),
    ({"segment_from": 1}, "mix_from is 15.0 epochs, but training ends after 2.0"),
    ({"segment_from": 1, "mix_from": None, "uncertain": 0.6}, "uncertain has to be less"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings, message):
    method = build_method(RecurSeedConfig(**settings), MODEL, 4)
    with pytest.raises(UserError, match=message):
        method.check_settings(Config(method.config), 100, 2.0)


def test_tags_are_the_classes_of_the_masks(root, cli):
    code, printed, error = cli(tags.main, root, "--splits", "[train, val]")
    assert code == 0 and "11 images" in printed, error
    written = json.loads((root / "tags.json").read_text())
    index = open_index(root, "val", "SegmentationClass")
    for position, (name, file) in enumerate(zip(index.names, index.label_files, strict=True)):
        shown = sorted(set(read_label(file).flatten().tolist()) - {0, 255})
        assert written[name] == [index.classes[number] for number in shown]
        assert open_index(root, "val").tags[position].nonzero()[0].tolist() == [number - 1 for number in shown]
    assert_refused(cli(tags.main, root), "tags.json is there already")
    assert cli(tags.main, root, "--replace")[0] == 0


# Training

FLAGS = [
    *LOOP, "--config", str(REPOSITORY / "configs/recurseed/voc.yaml"), "--model.backbone", MODEL.backbone, "--data.crop", "64",
    "--method.segment_from", "0.5", "--method.mix_from", "0.75", "--method.refine", "2", "--method.dilations", "[1, 2]",
]  # fmt: skip


@pytest.fixture
def tags_alone(root, monkeypatch):
    """A data set whose training images have tags.json, but neither masks nor scribbles."""
    index = open_index(root, "train", "SegmentationClass")
    monkeypatch.setattr(sys, "argv", ["tags", str(root)])
    assert tags.main() == 0
    for name, file in zip(index.names, index.label_files, strict=True):
        file.unlink()
        (root / "scribbles" / f"{name}.png").unlink()
    return root


def weights(run):
    return torch.load(run / "last.pt", weights_only=True)["method"]


@pytest.mark.slow
def test_training_reads_tags_alone_and_resumes_over_both_starts(tags_alone, tmp_path, cli):
    flags = [*FLAGS, "--data.root", tags_alone, "--train.val_steps", "1"]
    code, _, error = cli(train.main, *flags, "--out", tmp_path / "whole")
    assert code == 0, error
    whole = weights(tmp_path / "whole")
    assert (tmp_path / "whole/inside.png").is_file()
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    terms = [line for line in lines if "segmentation" in line]
    assert [line["segmentation"] > 0 for line in terms] == [False, False, True, True]
    assert [line["mixed_segmentation"] > 0 for line in terms] == [False, False, False, True]

    tags = (tags_alone / "tags.json").read_text()
    (tags_alone / "tags.json").write_text(tags.replace("disc", "star"))
    code, _, error = cli(train.main, *flags, "--out", tmp_path / "whole")
    assert code == 2 and "holds a run whose tags changed since it began" in error
    (tags_alone / "tags.json").write_text(tags)

    masks = tags_alone / "SegmentationClass"
    for name in (tags_alone / "ImageSets/Segmentation/train.txt").read_text().split():  # masks of one wrong class
        image = read_label(masks / "demo_0009.png") * 0 + 3
        write_label(masks / f"{name}.png", image)
    code, _, error = cli(train.main, *flags, "--out", tmp_path / "masked")
    assert code == 0, error
    assert all(torch.equal(value, whole[key]) for key, value in weights(tmp_path / "masked").items())

    for stop in (2, 3):  # the run goes on after step 1, before the first start, and after step 2, before the second
        out = tmp_path / f"stopped{stop}"
        settings = (*FLAGS[len(LOOP) :], "--train.val_steps", "1")
        child = multiprocessing.get_context("spawn").Process(
            target=call_and_signal, args=(out, tags_alone, "stepping", stop, settings)
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert torch.load(out / "last.pt", weights_only=True)["step"] == stop - 1
        code, _, error = cli(train.main, *flags, "--out", tmp_path / f"stopped{stop}")
        assert code == 0, error
        assert all(torch.equal(value, whole[key]) for key, value in weights(tmp_path / f"stopped{stop}").items())
    assert load_model(tmp_path / "whole/best.pt").predict(torch.zeros(1, 3, 64, 64)).shape == (1, 7, 64, 64)


@pytest.mark.slow
def test_the_script_goes_from_tags_to_a_second_network_and_skips_finished_steps(tags_alone, tmp_path):
    small = ["--model.backbone", MODEL.backbone, "--model.weights", "none", "--data.crop", "64", "--train.steps", "2",
             "--train.batch_size", "2", "--train.val_steps", "1", "--train.workers", "0"]  # fmt: skip
    flags = [*small, "--method.segment_from", "0.1", "--method.mix_from", "0.2"]
    step4 = " ".join(small).replace("--data.crop 64", "--data.crop 65")
    variables = {"DATA_ROOT": tags_alone, "OUT": tmp_path / "out", "STEP4": step4}
    done = script("train_recurseed.sh", *flags, **variables)
    assert done.returncode == 0, done.stderr
    assert "8 images" in done.stdout and "step 4 of 4" in done.stdout
    labels = tmp_path / "out/single_stage/pseudo_labels"
    index = open_index(tags_alone, "train")
    for name, of_image in zip(index.names, index.tags, strict=True):
        assert set(read_label(labels / f"{name}.png").flatten().tolist()) <= {0, *(1 + of_image.nonzero()[0]).tolist()}
    assert load_model(tmp_path / "out/multi_stage/best.pt").config.name == "cisc_r"
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.p*") if file.suffix in (".pt", ".png")}
    done = script("train_recurseed.sh", *flags, **variables)
    assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == before for file, before in files.items() if "pseudo_labels" in file.parts)
    assert all(file.stat().st_mtime_ns == before for file, before in files.items() if file.name == "last.pt")
    content = (tags_alone / "tags.json").read_text()
    (tags_alone / "tags.json").write_text(content.replace('"cross"', '"disc"'))
    for _ in range(2):  # the check stays, although the first one has drawn its sheet
        refused = script("train_recurseed.sh", *flags, **variables | {"OUT": tmp_path / "other"})
        assert refused.returncode == 1 and "no image has the tag cross" in refused.stdout
        assert not (tmp_path / "other/single_stage").exists()
    (tags_alone / "tags.json").unlink()
    refused = script("train_recurseed.sh", *flags, **variables | {"OUT": tmp_path / "other"})
    assert refused.returncode == 1 and "tags.json is missing" in refused.stdout
    assert not (tmp_path / "other/single_stage").exists()


@pytest.mark.slow
def test_two_processes_train_like_one(tags_alone, tmp_path):
    flags = [*FLAGS, "--data.root", tags_alone, "--train.batch_size", "4", "--train.lr", "0.001", "--method.mix_from", "null"]
    for processes in (1, 2):
        done = launch(processes, REPOSITORY / "tests/steady.py", *flags, "--out", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1", weights=1e-4, losses=1e-3)
