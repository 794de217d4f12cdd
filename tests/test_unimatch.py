"""UniMatch and FixMatch: strong views, CutMix, losses, and their script."""

import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from test_chain import script
from test_cisc_r import SMALL, both_lists, few_masks  # noqa: F401, fixtures
from test_distributed import assert_same_training, launch
from training import LOOP

from config import ModelConfig, TrainConfig
from datasets import open_index
from datasets.segmentation import SegmentationDataset
from datasets.transforms import Augmentation
from engine import distributed
from engine.loading import check_batch
from errors import UserError
from methods import build_method
from methods.recurseed import RecurSeedConfig
from methods.unimatch import Target, UniMatchConfig, mix, with_dropped
from ops.mixing import cutmix_boxes

MODEL = ModelConfig("timm:mobilenetv3_small_050", "none")


def batch_of(count=2, side=33, classes=3):
    label = torch.randint(0, classes, (count, side, side))
    label[0, :5] = 255
    outside = torch.zeros(count, side, side, dtype=torch.bool)
    outside[1, :, :7] = True
    return {
        "image": torch.randn(count, 3, side, side),
        "strong": torch.randn(count, 2, 3, side, side),
        "outside": outside,
        "labelled": {"image": torch.randn(count, 3, side, side), "label": label},
    }


def test_strong_views_show_the_same_crop_in_other_colours(tiny):
    place = Augmentation(65, (0.5, 2.0), 0, 0, 0.5)
    strong = Augmentation(65, (0.5, 2.0), 0, 0, 0.5, blur=0.5, jitter=1.0)
    dataset = SegmentationDataset(open_index(tiny, "train"), place, seed=1, strong=strong)
    item, again = dataset[2, 4], dataset[2, 4]
    unchanged = SegmentationDataset(open_index(tiny, "train"), place, seed=1, strong=place)[2, 4]
    assert all(torch.equal(view, unchanged["image"]) for view in unchanged["strong"])
    assert item["strong"].shape == (2, 3, 65, 65) and item["strong"].dtype == torch.uint8
    assert torch.equal(item["strong"], again["strong"])
    first, second = item["strong"].float()
    image = item["image"].float()
    assert (first - second).abs().mean() > 1 and (first - image).abs().mean() > 1
    plain = SegmentationDataset(open_index(tiny, "train"), place, seed=1)
    assert torch.equal(item["image"], plain[2, 4]["image"]), "the weak view does not depend on the strong views"


def test_boxes_of_cutmix_have_the_published_areas_and_half_of_the_images_have_none():
    boxes = cutmix_boxes(400, (60, 80))
    areas = boxes.float().mean(dim=(1, 2))
    assert 0.4 < (areas == 0).float().mean() < 0.6
    some = areas[areas > 0]
    assert some.min() > 0.015 and some.max() <= 0.41 and some.max() - some.min() > 0.3
    for box in boxes[areas > 0][:20]:
        rows, columns = box.any(dim=1).sum(), box.any(dim=0).sum()
        assert box.sum() == rows * columns, "a box is a rectangle"


def test_mixing_takes_images_and_targets_of_the_same_other_image():
    values = torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
    box = torch.zeros(3, 2, 2, dtype=torch.bool)
    box[:, 0, 1] = True
    got = mix(values, box)
    assert got[:, 0, 1].tolist() == [2, 0, 1] and got[:, 1, 1].tolist() == [0, 1, 2]
    target = Target(values, values == 0, values == 1).mixed(box)
    assert torch.equal(target.label, got)
    assert torch.equal(target.confident, got == 0) and torch.equal(target.inside, got == 1)


def test_half_of_the_channels_of_the_second_weak_view_are_dropped():
    maps = torch.ones(3, 64, 2, 2)
    got = with_dropped(maps, 2)
    assert torch.equal(got[:3], maps)
    channels = got[3:, :, 0, 0]
    assert set(channels.unique().tolist()) == {0.0, 2.0} and 0.25 < (channels == 0).float().mean() < 0.75


def test_the_losses_equal_the_published_formula(monkeypatch):
    """With a network of fixed logits: (L_x + L_s1 / 4 + L_s2 / 4 + L_fp / 2) / 2, each a mean over valid pixels."""
    method = build_method(UniMatchConfig(threshold=0.5), MODEL, 3)
    batch, logits, calls = batch_of(), torch.randn(10, 3, 33, 33), []

    def classify(feature):
        start = sum(calls)
        calls.append(len(feature))
        return logits[start : start + len(feature)]

    monkeypatch.setattr(method.network, "combine", lambda features, finer: features)
    monkeypatch.setattr(method.network, "classify", classify)
    boxes = []

    def remembered(count, size):
        boxes.append(cutmix_boxes(count, size, probability=1.0))
        return boxes[-1]

    monkeypatch.setattr("methods.unimatch.cutmix_boxes", remembered)
    losses = method(batch)
    assert calls == [6, 4], "labelled, weak and dropped together; then both strong views"
    labelled, weak, dropped, first, second = logits.split(2)
    probability, label = weak.softmax(1).max(1)

    def term(logits, box=None):
        target = [label, probability >= 0.5, ~batch["outside"]]
        if box is not None:
            target = [torch.where(box, values[[1, 0]], values) for values in target]
        entropy = F.cross_entropy(logits, target[0], reduction="none")
        return (entropy * (target[1] & target[2])).sum() / target[2].sum()

    want = {
        "cross_entropy": F.cross_entropy(labelled, batch["labelled"]["label"], ignore_index=255) / 2,
        "dropped_channels": term(dropped) / 4,
        "strong_views": (term(first, boxes[0]) + term(second, boxes[1])) / 8,
    }
    assert losses.keys() == want.keys()
    for name, value in want.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("network", ["deeplabv3plus", "pspnet", "deeplabv2"])
def test_both_forms_train_every_weight(network):
    for views, names in (("fixmatch", ["strong_views"]), ("unimatch", ["dropped_channels", "strong_views"])):
        method = build_method(UniMatchConfig(network=network, views=views, threshold=0), MODEL, 3).train()
        losses = method(batch_of())
        assert list(losses) == ["cross_entropy", *names]
        sum(losses.values()).backward()
        assert all(weight.grad is not None for weight in method.parameters())
        assert all(next(part.parameters()).grad.any() for part in (method.network.backbone, method.network.classifier))


def test_methods_that_mix_images_need_two_in_each_process():
    method = build_method(UniMatchConfig(), MODEL, 3)
    gpus = distributed.Process(0, 4, torch.device("cuda"))
    for batch, parts, message in ((4, 1, "2 images in each of 1 parts on 4 processes: choose at least 8"),
                                  (8, 2, "2 images in each of 2 parts on 4 processes: choose at least 16")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            check_batch(TrainConfig(batch_size=batch, accumulate=parts), gpus, method.fewest_images, method.fewest_in_process)
    check_batch(TrainConfig(batch_size=8), gpus, method.fewest_images, method.fewest_in_process)
    assert build_method(RecurSeedConfig(), MODEL, 3).fewest_in_process == 2
    assert build_method(RecurSeedConfig(mix_from=None), MODEL, 3).fewest_in_process == 1


@pytest.mark.slow
def test_the_script_trains_without_masks_of_unlabelled_images(few_masks, tmp_path):  # noqa: F811
    data = {"DATA_ROOT": few_masks, "LABELLED": "labelled", "UNLABELLED": "unlabelled", "OUT": tmp_path / "run"}
    flags = ["--config", "configs/unimatch/demo.yaml", *SMALL[2:]]
    done = script("train_unimatch.sh", *flags, **data)
    assert done.returncode == 0, done.stderr
    done = script("evaluate.sh", "--workers", "0", CHECKPOINT=tmp_path / "run/best.pt", DATA_ROOT=few_masks)
    assert done.returncode == 0 and "pixel accuracy" in done.stdout, done.stderr
    done = script("train_unimatch.sh", *flags, "--method.views", "fixmatch", **data | {"OUT": tmp_path / "fixmatch"})
    assert done.returncode == 0, done.stderr
    assert "dropped_channels" not in (tmp_path / "fixmatch/metrics.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_train_like_one(both_lists, tmp_path):  # noqa: F811
    """FixMatch without CutMix and dropped channels, whose random numbers depend on the process."""
    flags = [*LOOP, "--method.name", "unimatch", "--method.views", "fixmatch", "--method.threshold", "0", "--data.root",
             both_lists, "--data.train_split", "unlabelled", "--data.labelled.split", "labelled", "--model.backbone",
             MODEL.backbone, "--train.batch_size", "4", "--train.lr", "0.001"]  # fmt: skip
    for processes in (1, 2):
        command = [REPOSITORY / "tests/steady.py", *flags, "--out", tmp_path / str(processes)]
        done = launch(processes, *command)
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1", weights=1e-5, losses=1e-3)
