"""Inference, metrics and checkpoints."""

import math
import os
import platform
import subprocess
import sys
from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch.nn import functional as F

from config import Config, InferenceConfig, ModelConfig
from datasets.transforms import normalise
from engine import checkpoint, distributed
from engine.inference import GROUP, on_grid, positions_of_process, predict_probabilities, predict_split, window_starts
from engine.metrics import BoundaryScores, ConfusionMatrix, table
from engine.preparation import crop_note
from errors import UserError
from methods import build_method
from methods.cc4s import CC4SConfig

# Inference


def network(images):
    """Logits that depend on neighbouring pixels and, through zero padding, on where the window ends."""
    kernel = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.conv2d(images, kernel, padding=2)


class Plain:
    """Stands in for a method whose prediction is a function of the images."""

    grid = (1, 0)

    def __init__(self, predict=network):
        self.predict = predict


def drawn(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def naive(image, scales, window, stride, flip, long_side, average="probabilities"):
    """Computes the result of predict_probabilities one window at a time."""
    image = normalise(image)
    height, width = image.shape[-2:]
    base = 1 if long_side is None else long_side / max(height, width)
    results = []
    for scale in scales:
        size = (round(height * base * scale), round(width * base * scale))
        scaled = F.interpolate(image[None], size, mode="bilinear", align_corners=True)
        for mirrored in [False, True] if flip else [False]:
            view = scaled.flip(-1) if mirrored else scaled
            pad = F.pad(view, (0, max(0, window - size[1]), 0, max(0, window - size[0])))
            total, count = torch.zeros(1, 4, *pad.shape[-2:]), torch.zeros(pad.shape[-2:])
            tops, lefts = ([], [])
            for starts, side in ((tops, pad.shape[-2]), (lefts, pad.shape[-1])):
                start = 0
                while True:
                    starts.append(min(start, side - window))
                    if start + window >= side:
                        break
                    start += stride
            for top in tops:
                for left in lefts:
                    crop = pad[:, :, top : top + window, left : left + window]
                    total[:, :, top : top + window, left : left + window] += (
                        network(crop).softmax(1) if average == "probabilities" else network(crop)
                    )
                    count[top : top + window, left : left + window] += 1
            result = (total / count)[:, :, : size[0], : size[1]]
            result = result.flip(-1) if mirrored else result
            results.append(F.interpolate(result, (height, width), mode="bilinear", align_corners=True)[0])
    mean = torch.stack(results).mean(0)
    return mean if average == "probabilities" else mean.softmax(0)


@pytest.mark.parametrize("size", [(31, 47), (16, 16), (9, 40), (33, 17)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales, long_side", [((1.0,), None), ((0.5, 1.0, 1.75), 40)])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_scales_and_flips_equal_the_naive_loop(size, flip, scales, long_side, average):
    images = drawn(2, 3, *size)
    how = {"scales": scales, "long_side": long_side, "flip": flip, "average": average}
    got = predict_probabilities(Plain(), images, InferenceConfig(window=16, window_stride=15 / 16, **how))
    wanted = torch.stack([naive(image, window=16, stride=15, **how) for image in images])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.sum(1), torch.ones(2, *size))


def test_the_pixel_budget_changes_only_how_windows_are_batched():
    image = drawn(1, 3, 40, 50)
    passes = []

    def counting(crops):
        passes.append(len(crops))
        return network(crops)

    results = []
    for budget in (1, 3 * 16 * 16, 10**9):
        config = InferenceConfig(window=16, flip=True, batch_pixels=budget)
        results.append(predict_probabilities(Plain(counting), image, config))
    windows = 2 * 4 * 5
    assert passes == [1] * windows + [3] * (windows // 3) + [windows % 3] + [windows]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


class Ramp:
    """Stands in for a method: its map of `stride` takes every stride-th pixel, and is resized to the image."""

    def __init__(self, stride, align_corners, grid):
        self.stride, self.align_corners, self.grid = stride, align_corners, grid

    def predict(self, images):
        pixels = images[..., self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]
        if self.align_corners:
            pixels = images[..., :: self.stride, :: self.stride]
        return F.interpolate(pixels, images.shape[-2:], mode="bilinear", align_corners=self.align_corners)


@pytest.mark.parametrize("height, width", [(128, 160), (100, 83), (65, 97), (129, 96)])
@pytest.mark.parametrize("method", [Ramp(8, True, (8, 1)), Ramp(32, True, (32, 1)), Ramp(8, False, (32, 0))])
def test_predictions_lie_on_the_image_at_every_size(method, height, width):
    """The logits are coordinates. Where the padding has no part in the interpolation, they are those of the pixel."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in (height, width))
    images = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    logits = on_grid(method)(images)
    assert logits.shape == images.shape
    within = [max(0, side - method.stride - 1) for side in (height, width)]
    difference = (logits - images)[..., method.stride // 2 : within[0], method.stride // 2 : within[1]].abs()
    assert difference.max() <= (1e-3 if method.align_corners else 0.5 + 1e-3)  # the middle of 8 pixels is between two of them


def test_without_the_grid_predictions_drift_to_the_right():
    images = torch.arange(160.0).expand(1, 1, 128, 160)
    method = Ramp(8, True, (8, 1))
    assert (images - method.predict(images))[0, 0, 0, 151].item() > 6
    assert (images - on_grid(method)(images))[0, 0, 0, 151].abs().item() < 1e-3


@pytest.mark.parametrize("backbone, maps, grid", [
    ("resnet18", "auto", (8, 1)), ("resnet18", "fused", (32, 1)), ("timm:efficientnet_lite0", "auto", (32, 1)),
    ("timm:vit_tiny_patch16_224", "auto", (16, 1)), ("timm:mobilenetv3_small_050", "auto", (32, 1)),
])  # fmt: skip
def test_the_grid_follows_from_the_encoder(backbone, maps, grid):
    assert build_method(CC4SConfig(), ModelConfig(backbone, "none", maps), 3).grid == grid


def test_a_crop_off_the_grid_gives_a_note_with_the_nearest_crops():
    method = build_method(CC4SConfig(), ModelConfig("timm:mobilenetv3_small_050", "none"), 3)
    assert list(crop_note(method, 129)) == []
    assert list(crop_note(method, 465)) == ["--data.crop 465 does not fit this network's maps exactly: 449 and 481 do"]


def test_default_inference_equals_the_softmax_of_the_network():
    image = drawn(1, 3, 20, 30)
    torch.testing.assert_close(predict_probabilities(Plain(), image, InferenceConfig()), network(normalise(image)).softmax(1))


def recording(passes):
    def predict(images):
        passes.append(tuple(images.shape))
        return network(images)

    return predict


def test_images_of_one_size_in_a_group_are_predicted_together():
    passes = []
    sizes = [(20, 30), (20, 30), (20, 30), (30, 20), (20, 30), (20, 30)]
    items = [{"image": drawn(3, *size), "label": torch.full(size, number)} for number, size in enumerate(sizes)]
    positions = [0, 1, 2, 3, 8, 12]  # a group has four positions, so the last two are in different groups
    darker = lambda probabilities, image: probabilities * image.float().mean()  # noqa: E731
    config = InferenceConfig(batch_pixels=2 * 20 * 30)
    results = list(predict_split(Plain(recording(passes)), items, positions, config, torch.device("cpu"), "fp32", darker))
    assert passes == [(2, 3, 20, 30), (1, 3, 20, 30), (1, 3, 30, 20), (1, 3, 20, 30), (1, 3, 20, 30)]
    assert [position for position, _, _ in results] == positions
    for item, (_, got, probabilities) in zip(items, results, strict=True):
        assert got is item
        wanted = predict_probabilities(Plain(), item["image"][None], config)[0] * item["image"].float().mean()
        torch.testing.assert_close(probabilities, wanted)


@pytest.mark.parametrize(
    "config", [InferenceConfig(scales=(0.5, 2.0)), InferenceConfig(window=64), InferenceConfig(long_side=60)]
)
def test_the_pixel_budget_holds_for_enlarged_or_padded_images(config):
    passes = []
    config.batch_pixels = 2 * 64 * 64
    predict_probabilities(Plain(recording(passes)), drawn(4, 3, 20, 30), config)
    assert all(batch == 1 or batch * height * width <= config.batch_pixels for batch, _, height, width in passes)
    assert max(batch for batch, _, _, _ in passes) > 1


@pytest.mark.parametrize("length", [1, 4, 5, 23])
def test_each_process_gets_whole_groups_of_images(length):
    shares = [positions_of_process(length, distributed.Process(rank, 3, torch.device("cpu"))) for rank in range(3)]
    assert sorted(chain.from_iterable(shares)) == list(range(length))
    for share in shares:
        for position in share:
            group = range(position // GROUP * GROUP, min(position // GROUP * GROUP + GROUP, length))
            assert set(group) <= set(share)


def test_windows_cover_every_pixel_and_end_with_the_image():
    for side in range(1, 60):
        starts = window_starts(side, 16, 11)
        covered = {pixel for start in starts for pixel in range(start, start + 16)}
        assert set(range(side)) <= covered
        assert side <= 16 or starts[-1] + 16 == side


# Metrics


def test_scores_equal_counting_by_hand():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (20, 20)), rng.integers(0, 3, (20, 20))
    truth[:5] = 255
    matrix = ConfusionMatrix(4)
    for rows in (slice(0, 9), slice(9, 20)):
        matrix.update(torch.from_numpy(prediction[rows]), torch.from_numpy(truth[rows]))
    scores = matrix.scores(["a", "b", "c", "never"])
    counted = truth != 255
    ious, dices = [], []
    for number in range(3):
        t, p = (truth == number) & counted, (prediction == number) & counted
        ious.append((t & p).sum() / (t | p).sum())
        dices.append(2 * (t & p).sum() / (t.sum() + p.sum()))
    assert list(scores["iou"].values()) == [pytest.approx(iou) for iou in ious] + [None]
    assert scores["miou"] == pytest.approx(np.mean(ious))
    assert scores["dice"] == pytest.approx(np.mean(dices))
    assert scores["pixel_accuracy"] == pytest.approx((truth == prediction)[counted].mean())
    lines = table(scores | {"boundary_iou": 0.125})
    assert f"{100 * np.mean(ious):.2f}" in lines and "never" in lines and "12.50" in lines


def naive_boundary(mask, width):
    """Pixels of a mask at most `width` steps, also diagonal ones, from a pixel outside the mask or from the image edge."""
    inner = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        rows, columns = slice(y - width, y + width + 1), slice(x - width, x + width + 1)
        inside = y >= width and x >= width and y + width < mask.shape[0] and x + width < mask.shape[1]
        inner[y, x] = inside and mask[rows, columns].all()
    return mask & ~inner


def test_boundary_iou_equals_counting_by_hand():
    rng = np.random.default_rng(0)
    scores = BoundaryScores(3)
    hit, either = np.zeros(3), np.zeros(3)
    for _ in range(4):
        truth, prediction = (cv2.resize(rng.integers(0, 3, (4, 5), np.uint8), (64, 48), interpolation=0) for _ in range(2))
        truth[:3, :5] = 255
        scores.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        width = round(0.02 * np.hypot(48, 64))
        for number in range(3):
            t = naive_boundary(truth == number, width)
            p = naive_boundary((prediction == number) & (truth != 255), width)
            hit[number] += (t & p).sum()
            either[number] += (t | p).sum()
    result = scores.scores(["a", "b", "c"])
    assert list(result["boundary_iou_per_class"].values()) == pytest.approx((hit / either).tolist())
    assert result["boundary_iou"] == pytest.approx((hit / either).mean())


def test_without_labelled_pixels_the_miou_is_nan():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3, 3, dtype=torch.long), torch.full((3, 3), 255))
    assert math.isnan(matrix.scores(["a", "b"])["miou"])


# Checkpoints

CLASSES = ("a", "b", "c")


def make(**model):
    config = Config(method=CC4SConfig(soft_entropy=1.0), model=ModelConfig(**({"backbone": "resnet18"} | model)))
    return config, build_method(config.method, config.model, len(CLASSES))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    config, method = make()
    checkpoint.save_checkpoint(tmp_path / "best.pt", method, config, CLASSES, step=3)
    return method, tmp_path / "best.pt"


def test_load_model_predicts_like_the_saved_model(saved):
    method, path = saved
    loaded = checkpoint.load_model(path)
    images = torch.randn(1, 3, 40, 48)
    assert not loaded.training and loaded.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(loaded.predict(images), method.eval().predict(images))
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]


def test_a_checkpoint_of_other_classes_or_network_is_refused(saved):
    content = checkpoint.read_checkpoint(saved[1])
    _, deeper = make(backbone="resnet34")
    with pytest.raises(UserError, match=r"another network .*resnet18"):
        checkpoint.load_weights(deeper, content, "x.pt", CLASSES)
    with pytest.raises(UserError, match="trained on 3 classes, the data has 2"):
        checkpoint.load_weights(make()[1], content, "x.pt", ("a", "b"))


@pytest.mark.parametrize("write, message", [
    (lambda path: None, "not found"),
    (lambda path: path.write_bytes(b"garbage"), "not a readable checkpoint"),
    (lambda path: torch.save({"weights": 1}, path), "neither a checkpoint of this project"),
    (lambda path: torch.save({"config": print, "classes": [], "method": {}}, path), "not a readable checkpoint"),
])  # fmt: skip
def test_a_file_that_is_no_checkpoint_gives_one_error_line(tmp_path, write, message):
    write(tmp_path / "best.pt")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load_model(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


def test_automatic_precision_is_bf16_only_if_the_cpu_supports_bf16(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)  # as on any CPU with AVX-512
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert distributed.pick_precision(cpu, "auto") == expected
        assert distributed.pick_precision(cpu, "bf16") == "bf16", "an explicit precision is not changed"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="2 GPUs, too few"):
        distributed.pick_device("auto")


@pytest.mark.slow
def test_denormal_numbers_become_zero_in_every_cpu_thread():
    program = """if True:
        import torch
        from engine.distributed import pick_device
        pick_device("cpu")
        torch.set_num_threads(2)
        assert not (torch.full((2**22,), 1e-30) * 1e-9).any()
    """
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0


def test_a_checkpoint_of_another_version_is_refused_with_both_versions(checkpoints, tmp_path):
    content = torch.load(checkpoints / "seven.pt", weights_only=True)
    assert content["version"] == checkpoint.VERSION and f"## {checkpoint.VERSION}" in (REPOSITORY / "CHANGELOG.md").read_text()
    content["config"]["model"]["shrink"] = 2  # a setting that existed before
    content["version"] = "0.1.0"
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(UserError, match=rf"old\.pt: written by version 0\.1\.0 of this project, this is {checkpoint.VERSION}"):
        checkpoint.load_model(tmp_path / "old.pt")
