"""CISC-R: losses, networks, partners, lists of images, ranking, and the script of six steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import REPOSITORY
from test_chain import SHELLS, script
from test_distributed import assert_same_training, launch
from test_losses import gradients, normal
from test_mistakes import assert_refused
from training import LOOP

import train
from config import Config, DataConfig, ModelConfig
from datasets import open_index
from datasets.drawing.demo import CLASSES
from datasets.files import read_label, write_label
from datasets.index import group_names
from datasets.partners import Partners, class_lists, read_class_lists, shown_classes
from datasets.segmentation import PARTNER_STREAM, SegmentationDataset
from datasets.transforms import Augmentation
from engine.checkpoint import load_model, model_of, save_checkpoint
from engine.preparation import open_partners
from engine.published import convert
from errors import UserError
from losses.cross_image import cosine_map, map_consistency, masked_mean
from losses.rectified_cross_entropy import rectification, rectified_cross_entropy
from methods import build_method
from methods.cisc_r import CISCRConfig
from tools import reliable, splits

# Losses


def test_the_masked_mean_equals_the_mean_of_the_resized_features():
    features = normal(2, 3, 4, 5).requires_grad_()
    mask = (normal(2, 13, 11, seed=1) > 0.3).double()
    large = F.interpolate(features, (13, 11), mode="bilinear", align_corners=False)
    want = torch.stack([
        torch.stack([(large[b, d] * mask[b]).sum() / (mask[b].sum() + 5e-4) for d in range(3)]) for b in range(2)
    ])  # fmt: skip
    got = masked_mean(features, mask)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weights = normal(2, 3, seed=2)
    torch.testing.assert_close(gradients((got * weights).sum(), features), gradients((want * weights).sum(), features))


def test_the_cosine_map_equals_a_loop_and_is_0_for_an_empty_class():
    features, means = normal(2, 3, 2, 2).requires_grad_(), normal(2, 3, seed=1)
    means[1] = 0
    got = cosine_map(features, means)
    for y in range(2):
        for x in range(2):
            f, v = features[0, :, y, x], means[0]
            assert got[0, 0, y, x].item() == pytest.approx((f @ v / (f.norm() * v.norm())).item(), rel=1e-9)
    assert (got[1] == 0).all()
    assert gradients(got.sum(), features)[0].isfinite().all()


def test_map_consistency_equals_a_loop_over_the_labelled_pixels():
    similar, binary = torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 3, 4) > 0.5
    label = torch.where(torch.rand(2, 3, 4) > 0.3, binary.long(), 255)
    terms = [
        -np.log(s) if m else -np.log(1 - s)
        for s, m, known in zip(*(values.flatten().tolist() for values in (similar, binary, label != 255)), strict=True)
        if known
    ]
    assert map_consistency(similar, binary, label).item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_map_consistency_survives_a_cosine_over_1_and_is_exactly_0_without_class_or_label():
    ones, label = torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    over = (ones + 1e-6).requires_grad_()
    value = map_consistency(over, ones.bool(), label) + map_consistency(over, ~ones.bool(), label)
    assert value.isfinite() and gradients(value, over)[0].isfinite().all()
    assert map_consistency(0 * ones, ~ones.bool(), label).item() == 0
    similar = torch.rand(1, 2, 2, requires_grad=True)
    value = map_consistency(similar, ones.bool(), label + 255)
    assert value.item() == 0 and (gradients(value, similar)[0] == 0).all()


def test_the_rectified_cross_entropy_equals_a_loop_over_the_labelled_pixels():
    logits, similar = normal(2, 3, 4, 5), torch.rand(2, 4, 5, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, :2] = 255
    binary = label == 1
    log_probabilities, terms = logits.log_softmax(1), []
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if label[b, y, x] != 255:
                    weight = 1 - abs(float(binary[b, y, x]) - similar[b, y, x].item())
                    terms.append(-weight * log_probabilities[b, label[b, y, x], y, x].item())
    got = rectified_cross_entropy(logits, label, rectification(binary, similar))
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-9)
    assert rectified_cross_entropy(logits, label * 0 + 255, rectification(binary, similar)).item() == 0


# Networks


def published_backbone(state, images):
    """torchvision's ResNet-50 with its own way of dilating, filled from published names: the maps of strides 4 and 8."""
    resnet = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    resnet.load_state_dict(own, strict=False)
    maps = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    low = resnet.layer1(maps)
    return low, resnet.layer4(resnet.layer3(resnet.layer2(low)))


def norm_relu(state, prefix, features):
    """Batch norm in evaluation mode, and ReLU, written out."""
    mean, var, weight, bias = (state[f"{prefix}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return ((features - mean) / (var + 1e-5).sqrt() * weight + bias).relu()


def up(features, size):
    return F.interpolate(features, size, mode="bilinear", align_corners=True)


def published_deeplabv3plus(state, images):
    low, high = published_backbone(state, images)
    size = high.shape[-2:]
    parts = [norm_relu(state, "head.b0.1", F.conv2d(high, state["head.b0.0.weight"]))]
    for n, rate in ((1, 12), (2, 24), (3, 36)):
        parts.append(
            norm_relu(state, f"head.b{n}.1", F.conv2d(high, state[f"head.b{n}.0.weight"], padding=rate, dilation=rate))
        )
    pooled = F.conv2d(high.mean((2, 3), keepdim=True), state["head.b4.gap.1.weight"])
    parts.append(up(norm_relu(state, "head.b4.gap.2", pooled), size))
    aspp = norm_relu(state, "head.project.1", F.conv2d(torch.cat(parts, 1), state["head.project.0.weight"]))
    low = norm_relu(state, "reduce.1", F.conv2d(low, state["reduce.0.weight"]))
    feature = torch.cat([low, up(aspp, low.shape[-2:])], 1)
    for conv, norm in ((0, 1), (3, 4)):
        feature = norm_relu(state, f"fuse.{norm}", F.conv2d(feature, state[f"fuse.{conv}.weight"], padding=1))
    return feature, F.conv2d(feature, state["classifier.weight"], state["classifier.bias"])


def published_pspnet(state, images):
    _, high = published_backbone(state, images)
    parts = [high]
    for n, size in ((1, 1), (2, 2), (3, 3), (4, 6)):
        prefix = f"head.conv5.0.conv{n}"
        pooled = F.conv2d(F.adaptive_avg_pool2d(high, size), state[f"{prefix}.0.weight"])
        parts.append(up(norm_relu(state, f"{prefix}.1", pooled), high.shape[-2:]))
    feature = F.conv2d(torch.cat(parts, 1), state["head.conv5.1.weight"], padding=1)
    feature = norm_relu(state, "head.conv5.2", feature)
    return feature, F.conv2d(feature, state["head.conv5.5.weight"], state["head.conv5.5.bias"])


def published_deeplabv2(state, images):
    _, high = published_backbone(state, images)
    logits = [
        F.conv2d(high, state[f"classifier.{n}.weight"], state[f"classifier.{n}.bias"], padding=rate, dilation=rate)
        for n, rate in enumerate((6, 12, 18, 24))
    ]
    return high, sum(logits)


HEADS = {
    "deeplabv3plus": (published_deeplabv3plus, None),
    "pspnet": (
        published_pspnet,
        {f"head.conv5.0.conv{n}.0.weight": (512, 2048, 1, 1) for n in range(1, 5)}
        | {"head.conv5.1.weight": (512, 4096, 3, 3), "head.conv5.5.weight": (21, 512, 1, 1), "head.conv5.5.bias": (21,)}
        | {
            f"head.conv5.{norm}.{kind}": (512,)
            for norm in ("0.conv1.1", "0.conv2.1", "0.conv3.1", "0.conv4.1", "2")
            for kind in ("weight", "bias", "running_mean", "running_var")
        },
    ),
    "deeplabv2": (
        published_deeplabv2,
        {f"classifier.{n}.weight": (21, 2048, 3, 3) for n in range(4)} | {f"classifier.{n}.bias": (21,) for n in range(4)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_released_network_loads_and_equals_its_published_form(name, reference, fill):
    """On an image whose maps are larger than every rate, so that a wrong rate fails."""
    forward, head = HEADS[name]
    shapes = json.loads((reference / "cisc_r_deeplabv3plus_resnet50.keys.json").read_text())
    if head is not None:
        shapes = {key: shape for key, shape in shapes.items() if key.startswith("backbone.")} | head
        counters = [key.replace("running_var", "num_batches_tracked") for key in head if key.endswith("running_var")]
        shapes |= dict.fromkeys(counters, ())
    state = fill.fill_state_dict({key: tuple(shape) for key, shape in shapes.items()})
    network = model_of(convert(state, "file.pth"), "file.pth").network
    images = fill.image(3, 1, 301, 317)
    with torch.no_grad():
        feature, logits = forward(state, images)
        ours = network.feature(images)
        assert (ours - feature).abs().max() < 1e-4 * feature.abs().max()
        assert (network.classify(ours) - logits).abs().max() < 1e-4 * logits.abs().max()
        torch.testing.assert_close(network(images), up(network.classify(ours), images.shape[-2:]))


@pytest.mark.slow
@pytest.mark.parametrize("network", HEADS)
@pytest.mark.parametrize("backbone", ["resnet18", "timm:mobilenetv3_small_050"])
def test_every_network_trains_on_every_encoder(network, backbone):
    model = ModelConfig(backbone, "none")
    method = build_method(CISCRConfig(network=network, consistency=1), model, 4).train()
    label = torch.randint(0, 4, (2, 65, 65))
    partner = {"image": torch.randn(2, 3, 65, 65), "label": label, "shared": torch.tensor([1, -1])}
    losses = method({"image": torch.randn(2, 3, 65, 65), "label": label, "partner": partner})
    assert set(losses) == {"cross_entropy", "partner_cross_entropy", "consistency"}
    sum(losses.values()).backward()
    assert all(weight.grad is not None for weight in method.parameters())
    assert all(next(part.parameters()).grad.any() for part in (method.network.backbone, method.network.classifier))
    assert method.eval().predict(torch.randn(1, 3, 50, 70)).shape == (1, 4, 50, 70)


def test_a_plain_vit_has_no_deeplabv3plus():
    with pytest.raises(UserError, match=r"no map of stride 4: choose --method\.network pspnet"):
        build_method(CISCRConfig(), ModelConfig("timm:vit_tiny_patch16_224", "none"), 4)


# The method


def step_one(labels, shared):
    """The losses of step 1 for two pairs, and the method."""
    method = build_method(CISCRConfig(consistency=1), ModelConfig("timm:mobilenetv3_small_050", "none"), 4).train()
    images = torch.randn(4, 3, 65, 65)
    partner = {"image": images[2:], "label": labels[2:], "shared": torch.tensor(shared)}
    return method, method({"image": images[:2], "label": labels[:2], "partner": partner})


def test_pairs_without_a_shared_class_have_a_consistency_of_exactly_0():
    _, losses = step_one(torch.randint(0, 4, (4, 65, 65)), [-1, -1])
    assert losses["consistency"].item() == 0
    assert losses["cross_entropy"].item() > 0


def test_labels_without_a_labelled_pixel_give_a_loss_of_exactly_0_and_no_gradient():
    method, losses = step_one(torch.full((4, 65, 65), 255), [-1, -1])
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert all((weight.grad == 0).all() for weight in method.parameters())


def test_a_teacher_of_another_method_is_refused(checkpoints):
    method = build_method(CISCRConfig(pseudo_labels="rectified"), ModelConfig("resnet18", "none"), 7)
    with pytest.raises(UserError, match="a checkpoint of method cisc_r"):
        method.begin_training(load_model(checkpoints / "seven.pt"))


def test_a_pseudo_label_counts_less_where_teacher_and_partner_disagree():
    """The features are the colours. Image and partner share class 1, which is red in the partner."""
    method = build_method(CISCRConfig(pseudo_labels="rectified"), ModelConfig("resnet18", "none"), 2)
    teacher = build_method(CISCRConfig(), ModelConfig("resnet18", "none"), 2)
    teacher.network.feature = lambda images: images
    method.begin_training(teacher)
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    image = torch.stack([red, red, green, green]).T.reshape(1, 3, 2, 2)
    label = torch.tensor([[[1, 0], [1, 0]]])  # right, wrong, wrong, right
    partner = {"image": image, "label": torch.tensor([[[1, 1], [0, 0]]]), "shared": torch.tensor([1])}
    batch = {"image": image, "label": label, "partner": partner}
    torch.testing.assert_close(method.rectification(batch), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    figures = method.figures(batch | {"truth": torch.tensor([[[1, 1], [0, 0]]])})
    assert figures["rectification/weight_where_right"].item() == pytest.approx(1)
    assert figures["rectification/weight_where_wrong"].item() == pytest.approx(0, abs=1e-6)
    partner["shared"] = torch.tensor([-1])
    assert (method.rectification(batch) == 1).all()


# Partners


def test_an_image_shows_the_classes_with_3_percent_of_its_labelled_pixels():
    label = np.full((100, 100), 255, np.uint8)
    assert shown_classes(label, 4).tolist() == []
    label[0, :100], label[1, :3], label[2, :2] = 0, 1, 2  # a scribble: 105 labelled pixels
    assert shown_classes(label, 4).tolist() == [0]
    label[1, :4] = 1
    assert shown_classes(label, 4).tolist() == [0, 1]
    assert shown_classes(label, 4, first_class=False).tolist() == [1]


def labelled_images(folder, labels):
    """A data set of class maps (H, W), each with an image."""
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "classes.txt").write_text("a\nb\nc\n")
    names = [f"image{number}" for number in range(len(labels))]
    (folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    for name, label in zip(names, labels, strict=True):
        write_label(folder / "SegmentationClass" / f"{name}.png", np.asarray(label, np.uint8))
        write_label(folder / "JPEGImages" / f"{name}.png", np.asarray(label, np.uint8))
    return open_index(folder, "train", "SegmentationClass")


def partners_of(index, crop=33, first_class=True):
    augment = Augmentation(crop, (0.5, 2.0), 0, 0, 0.5)
    dataset = SegmentationDataset(index, augment, stream=PARTNER_STREAM)
    return Partners(dataset, class_lists(index, first_class), first_class)


def halves(first, second, side=40):
    label = np.full((side, side), first)
    label[side // 2 :] = second
    return label


def test_a_partner_shares_a_class_and_is_never_the_image_itself(tmp_path):
    index = labelled_images(tmp_path, [halves(0, 1), halves(0, 1), halves(0, 2), halves(2, 2)])
    partners, label = partners_of(index, first_class=False), halves(0, 1, 33).astype(np.uint8)
    for seed in range(20):
        item = partners.draw("image0", label, np.random.default_rng(seed))
        assert item["shared"].item() == 1
        assert (item["label"] == 1).float().mean() >= 0.03
        assert not (item["label"] == 2).any(), "image1 is the only other image with class b"


def test_a_class_on_one_image_only_gives_an_unpaired_partner(tmp_path):
    index = labelled_images(tmp_path, [halves(1, 1), halves(0, 0), halves(2, 2)])
    label = np.full((33, 33), 1, np.uint8)
    drawn = [partners_of(index).draw("image0", label, np.random.default_rng(seed)) for seed in range(20)]
    assert {item["shared"].item() for item in drawn} == {-1}
    assert not any((item["label"] == 1).any() for item in drawn)
    assert {int(item["label"][item["label"] < 3][0]) for item in drawn} == {0, 2}


def test_a_crop_without_labels_gives_an_unpaired_partner(tmp_path):
    index = labelled_images(tmp_path, [halves(0, 1), halves(0, 1)])
    item = partners_of(index).draw("other", np.full((33, 33), 255, np.uint8), np.random.default_rng(0))
    assert item["shared"].item() == -1


def test_a_small_object_in_a_large_partner_is_found(tmp_path):
    """Ten random places of the crop miss the object, which covers 3% of the labelled pixels in a corner."""
    label = np.full((400, 400), 255)
    label[:6, :6], label[-30:, -30:] = 1, 0
    index = labelled_images(tmp_path, [label, halves(1, 1)])
    partners = partners_of(index, first_class=False)
    shared = [
        partners.draw("image1", np.full((33, 33), 1, np.uint8), np.random.default_rng(seed))["shared"].item()
        for seed in range(20)
    ]
    assert shared == [1] * 20


def test_an_item_with_a_partner_depends_on_seed_and_key_alone(tmp_path):
    index = labelled_images(tmp_path, [halves(0, 1), halves(1, 2), halves(2, 0), halves(1, 0)])
    augment = Augmentation(33, (0.5, 2.0), 10, 0.5, 0.5)
    first, second = (SegmentationDataset(index, augment, seed=3, partners=partners_of(index)) for _ in range(2))
    for key in ((0, 0), (1, 2), (5, 3)):
        one, two = first[key]["partner"], second[key]["partner"]
        assert all(torch.equal(one[name], two[name]) for name in ("image", "label", "shared"))
    assert not torch.equal(first[0, 0]["partner"]["image"], first[1, 0]["partner"]["image"])


def test_a_labelled_image_without_another_is_refused(tmp_path):
    index, other = (labelled_images(tmp_path / name, [halves(0, 1)]) for name in ("one", "two"))
    with pytest.raises(UserError, match="image0 is the only labelled image"):
        open_partners(DataConfig(), index, index, 0)
    assert len(open_partners(DataConfig(), replace(other, names=("another",)), index, 0).lists) == 3


def test_bad_lists_of_partners_give_one_line(tmp_path):
    index = labelled_images(tmp_path / "data", [halves(0, 1), halves(0, 1)])
    file = tmp_path / "partners.json"
    for content, message in (
        ('{"a": ["image0"], "z": []}', "z is neither a class nor a labelled image"),
        ('{"a": ["image7"]}', "image7 is neither"),
        ("[1]", "is expected"),
        ("{", "is expected"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_class_lists(file, index)
    with pytest.raises(UserError, match=r"tools\.reliable writes it"):
        read_class_lists(tmp_path / "none.json", index)
    file.write_text('{"b": ["image1"]}')
    assert [positions.tolist() for positions in read_class_lists(file, index)] == [[], [1], []]


# Lists of images


def test_labelled_lists_are_nested_cover_the_classes_and_depend_on_the_seed(tiny, tmp_path, cli):
    index = open_index(tiny, "train", "SegmentationClass")
    classes = splits.classes_of(index)
    lists = {}
    for seed in (0, 1, 2):
        flags = ["--counts", "[3, 5]", "--seed", seed, "--out", tmp_path / str(seed)]
        code, _, error = cli(splits.main, "make", tiny, *flags)
        assert code == 0, error
        for count in (3, 5):
            labelled, unlabelled = (
                (tmp_path / str(seed) / f"{kind}_{count}.txt").read_text().split() for kind in ("labelled", "unlabelled")
            )
            assert len(labelled) == count
            assert sorted(labelled + unlabelled) == sorted(index.names)
            lists[seed, count] = set(labelled)
        assert lists[seed, 3] < lists[seed, 5]
        assert set().union(*(classes[name] for name in lists[seed, 5])) == set().union(*classes.values())
    assert len({frozenset(lists[seed, 3]) for seed in (0, 1, 2)}) > 1


def test_groups_of_images_stay_together():
    names = ("p1_a", "p2_a", "p1_b", "p3_a", "p2_b")
    groups = group_names(names, r"p\d+", "--groups")
    assert groups == {"p1": ["p1_a", "p1_b"], "p2": ["p2_a", "p2_b"], "p3": ["p3_a"]}
    classes = {"p1_a": {0}, "p1_b": {0}, "p2_a": {0}, "p2_b": {0, 1}, "p3_a": {2}}
    for seed in range(5):
        order = splits.covering_order(groups, classes, seed)
        assert sorted(order) == ["p1", "p2", "p3"]
        covered, adds = set(), []
        for group in order:
            shown = set().union(*(classes[name] for name in groups[group]))
            adds.append(bool(shown - covered))
            covered |= shown
        assert adds == sorted(adds, reverse=True), "groups with a new class come before the others"
    with pytest.raises(UserError, match="does not match p1_a"):
        group_names(names, "q", "--groups")
    with pytest.raises(UserError, match="not a regular expression"):
        group_names(names, "(", "--groups")


def test_a_published_list_is_imported_in_the_names_of_the_data(tiny, tmp_path, cli):
    names = open_index(tiny, "train").names
    file, out = tmp_path / "labeled.txt", tmp_path / "labelled.txt"
    lines = [f"JPEGImages/{names[3]}.jpg SegmentationClass/{names[3]}.png", names[1], f"a/b/{names[2]}_leftImg8bit.png x"]
    file.write_text("\n".join(lines) + "\n")
    code, printed, error = cli(splits.main, "import", tiny, "--list", file, "--out", out)
    assert code == 0, error
    assert out.read_text().split() == [names[3], names[1], names[2]] and "3 images" in printed
    file.write_text("JPEGImages/nowhere.jpg\n")
    assert_refused(cli(splits.main, "import", tiny, "--list", file, "--out", out), "nowhere.jpg is not among the 8 images")
    stem = names[0].rpartition("_")[0]
    file.write_text(f"{names[5]}\nvolumes/{names[0]}.h5\n")
    by_tens = ["import", tiny, "--list", file, "--groups", rf"{stem}_\d\d\d", "--out", out]  # the last digit is the slice
    code, _, error = cli(splits.main, *by_tens)
    assert code == 0, error
    assert out.read_text().split() == list(names), "one group: all images, each once"
    file.write_text(f"{stem}_999\n")
    assert_refused(cli(splits.main, *by_tens), f"{stem}_999 has no image in --splits")
    assert_refused(cli(splits.main, "make", tiny, "--counts", "[8]"), "has 8 images; some must stay unlabelled")


# Ranking


def untrained(path, consistency=1.0):
    """A checkpoint of CISC-R with random weights."""
    torch.manual_seed(0)
    config = Config(CISCRConfig(consistency=consistency), model=ModelConfig("timm:mobilenetv3_small_050", "none"))
    save_checkpoint(path, build_method(config.method, config.model, len(CLASSES)), config, CLASSES)
    return path


@pytest.mark.slow
def test_the_ranking_keeps_the_better_half_by_the_written_out_score(tiny, tmp_path, cli):
    lists, masks = tmp_path / "lists", tiny / "SegmentationClass"
    names = open_index(tiny, "train").names
    for kind, part in (("labelled", names[:4]), ("unlabelled", names[4:])):
        splits.write_list(lists / f"{kind}.txt", list(part))
    classes, checkpoint = CLASSES, untrained(tmp_path / "random.pt")
    flags = ["--checkpoint", checkpoint, "--labelled", lists / "labelled.txt", "--unlabelled", lists / "unlabelled.txt"]
    flags += ["--pseudo_labels", masks, "--run.precision", "fp32"]
    out = tmp_path / "ranking"
    code, printed, error = cli(reliable.main, tiny, *flags, "--out", out)
    assert code == 0, error
    assert "2 of 4 unlabelled are reliable" in printed

    network = load_model(checkpoint).network

    def look(name):
        image = SegmentationDataset(open_index(tiny, "train")).read(names.index(name))[0]
        x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        label = torch.from_numpy(read_label(masks / f"{name}.png"))
        height, width = label.shape  # padded to 32 k + 1 pixels, as images are predicted
        padding = (0, -(width - 1) % 32, 0, -(height - 1) % 32)
        with torch.no_grad():
            return network.feature(F.pad(x[None], padding)), F.pad(label, padding, value=255)

    anchors = torch.zeros(len(classes), 256)
    for name in names[:4]:
        feature, label = look(name)
        large = F.interpolate(feature, label.shape, mode="bilinear", align_corners=False)[0]
        for number in range(len(classes)):
            inside = label == number
            anchors[number] += (large * inside).sum((1, 2)) / (inside.sum() + 5e-4)
    for name in names:
        feature, label = look(name)
        scores = json.loads((out / "scores" / f"{name}.json").read_text())
        assert set(scores) == {classes[n] for n in label.unique().tolist() if n != 255}
        for kind, got in scores.items():
            number = classes.index(kind)
            cosine = F.cosine_similarity(feature, anchors[number][None, :, None, None])[:, None]
            similar = F.interpolate(cosine, label.shape, mode="bilinear", align_corners=False)[0, 0].clamp(1e-6, 1 - 1e-6)
            want = F.binary_cross_entropy(similar, (label == number).float(), reduction="none")[label != 255].mean()
            assert got == pytest.approx(want.item(), rel=1e-3)

    scores = {name: json.loads((out / "scores" / f"{name}.json").read_text()) for name in names}
    order = sorted(names[4:], key=lambda name: np.mean(list(scores[name].values())))
    assert (out / "reliable.txt").read_text().split() == order[:2]
    assert (out / "unreliable.txt").read_text().split() == order[2:]
    partners = json.loads((out / "partners.json").read_text())
    for number, kind in enumerate(classes):
        shown = [n for n in names[:4] if number in shown_classes(read_label(masks / f"{n}.png"), len(classes))]
        ranked = sorted(shown, key=lambda name: scores[name][kind])
        assert partners[kind] == ranked[: max(1, len(ranked) // 2)]

    before = (out / "means" / f"{names[0]}.npy").stat().st_mtime_ns
    assert cli(reliable.main, tiny, *flags, "--out", out, "--reduce", "sum")[0] == 0
    order = sorted(names[4:], key=lambda name: sum(scores[name].values()))
    assert (out / "reliable.txt").read_text().split() == order[:2]
    assert (out / "means" / f"{names[0]}.npy").stat().st_mtime_ns == before, "finished images are skipped"
    splits.write_list(lists / "labelled.txt", list(names[:3]))
    assert_refused(cli(reliable.main, tiny, *flags, "--out", out), "was made with another labelled_sha256")


def test_the_ranking_refuses_a_network_without_a_feature_map(tiny, checkpoints, tmp_path, cli):
    flags = ["--checkpoint", checkpoints / "seven.pt", "--pseudo_labels", "scribbles", "--out", tmp_path / "out"]
    assert_refused(cli(reliable.main, tiny, *flags), "a checkpoint of method cisc_r is needed")


@pytest.mark.slow
def test_two_processes_rank_like_one(both_lists, tmp_path):
    checkpoint = untrained(tmp_path / "random.pt")
    for processes in (1, 2):
        flags = ["--checkpoint", checkpoint, "--pseudo_labels", "SegmentationClass", "--out", tmp_path / str(processes)]
        done = launch(processes, "-m", "tools.reliable", both_lists, *flags)
        assert done.returncode == 0, done.stderr
    files = [file.relative_to(tmp_path / "1") for file in (tmp_path / "1").rglob("*") if file.is_file()]
    assert len(files) == 4 + 8 + 4, "means, scores, three lists and the record"
    assert all((tmp_path / "2" / file).read_bytes() == (tmp_path / "1" / file).read_bytes() for file in files)


# Training

SMALL = [
    "--config", "configs/cisc_r/demo.yaml", "--model.backbone", "timm:mobilenetv3_small_050", "--model.weights", "none",
    "--data.crop", "65", "--train.batch_size", "2", "--train.steps", "4", "--train.val_steps", "2", "--train.log_every", "1",
    "--train.workers", "0",
]  # fmt: skip


@pytest.fixture
def both_lists(root):
    """A data set with a labelled and an unlabelled list of 4 images each. Returns its folder."""
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    splits.write_list(root / "ImageSets/Segmentation/labelled.txt", names[:4])
    splits.write_list(root / "ImageSets/Segmentation/unlabelled.txt", names[4:])
    return root


@pytest.fixture
def few_masks(both_lists):
    """The same without the masks of the unlabelled images."""
    for name in (both_lists / "ImageSets/Segmentation/unlabelled.txt").read_text().split():
        (both_lists / "SegmentationClass" / f"{name}.png").unlink()
        (both_lists / "scribbles" / f"{name}.png").unlink()
    return both_lists


def chain_of(root, out):
    return {"DATA_ROOT": root, "LABELLED": "labelled", "UNLABELLED": "unlabelled", "OUT": out}


def results(out):
    """The bytes of everything that the steps hand on, and the weights of every checkpoint."""
    files = [*out.glob("*/pseudo_labels/*.png"), *out.glob("*/merged_labels/*.png"), *out.glob("*/ranking/*.txt")]
    files += [*out.glob("*/ranking/partners.json"), *out.glob("*/ranking/*/*.json"), *out.glob("*/metrics.jsonl")]
    content = {str(file.relative_to(out)): file.read_bytes() for file in sorted(files)}
    for file in out.glob("*/*.pt"):
        for key, value in torch.load(file, weights_only=True)["method"].items():
            content[f"{file.relative_to(out)} {key}"] = value.numpy().tobytes()
    return content


STEPS = """step 1 of 6: train on pairs of labelled images
train.py --config configs/cisc_r/voc.yaml {data} --data.train_split a --data.labels L --data.truth M --out o/pairs \
--config configs/cisc_r/pairs.yaml --more 1
step 2 of 6: label the unlabelled images
predict.py --checkpoint o/pairs/best.pt --images d --split b {label} --out o/pairs/pseudo_labels
step 3 of 6: rank the images
-m tools.reliable d --checkpoint o/pairs/best.pt --labelled a --labels L --unlabelled b --pseudo_labels o/pairs/pseudo_labels \
--reduce sum --out o/pairs/ranking
step 4 of 6: train on the labelled and the reliable images
train.py --config configs/cisc_r/voc.yaml {data} --data.train_split o/pairs/ranking/reliable.txt --data.labels \
o/pairs/pseudo_labels --data.truth M --out o/retrain1 --config configs/cisc_r/retrain.yaml --teacher o/pairs/best.pt {partners}
step 5 of 6: label the unreliable images again
predict.py --checkpoint o/retrain1/best.pt --images d --split o/pairs/ranking/unreliable.txt {label} \
--out o/retrain1/pseudo_labels
-m tools.merge_labels d --split b --out o/retrain1/merged_labels --first o/retrain1/pseudo_labels --second o/pairs/pseudo_labels
step 6 of 6: train on the labelled and all unlabelled images
train.py --config configs/cisc_r/voc.yaml {data} --data.train_split b --data.labels o/retrain1/merged_labels --data.truth M \
--out o/retrain2 --config configs/cisc_r/retrain.yaml --teacher o/retrain1/best.pt {partners}
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_pass_the_paths_of_the_user_to_the_commands(shell, tmp_path):
    paths = {"DATA_ROOT": "d", "LABELLED": "a", "UNLABELLED": "b", "LABELS": "L", "MASKS": "M", "OUT": "o", "PRESET": "p"}
    done = script("train_cisc_r.sh", "--more", "1", shell=shell, cwd=tmp_path, REDUCE="sum", LAUNCH="echo", **paths)
    assert done.returncode == 0, done.stderr
    labelled = "--data.labelled.split a --data.labelled.labels L"
    want = STEPS.format(
        data="--data.root d",
        label="--preset p --pseudo_labels --threshold 0 --truth M",
        partners=f"{labelled} --data.partners.lists o/pairs/ranking/partners.json --more 1",
    )
    assert done.stdout == want
    done = script("train_unimatch.sh", "--more", "1", shell=shell, cwd=tmp_path, LAUNCH="echo", **paths)
    assert done.stdout == (
        "train.py --config configs/unimatch/voc.yaml --data.root d --data.train_split b --data.labels L --data.truth M --out o "
        f"{labelled} --more 1\n"
    )


def kill_at(file, command, variables):
    """Starts a command and kills it with its children as soon as the file is new."""
    before = file.stat().st_mtime_ns if file.exists() else None
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    child = subprocess.Popen(
        command, env=os.environ | {"PATH": path} | {key: str(value) for key, value in variables.items()},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not file.exists() or file.stat().st_mtime_ns == before:
        assert child.poll() is None
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.slow
def test_the_script_trains_without_masks_of_unlabelled_images_and_survives_kills(few_masks, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    done = script("train_cisc_r.sh", *SMALL, **chain_of(few_masks, whole))
    assert done.returncode == 0, done.stderr
    assert "step 6 of 6" in done.stdout
    want = results(whole)
    assert len(want) > 1000, "labels, scores and weights of three networks"
    names = (few_masks / "ImageSets/Segmentation/unlabelled.txt").read_text().split()
    unreliable = (whole / "pairs/ranking/unreliable.txt").read_text().split()
    for name in names:
        source = "retrain1" if name in unreliable else "pairs"
        assert (whole / f"retrain1/merged_labels/{name}.png").read_bytes() == (
            whole / f"{source}/pseudo_labels/{name}.png"
        ).read_bytes()
    assert (whole / "retrain1/inside.png").is_file() and "Inside the method" in (whole / "retrain1/report.html").read_text()

    # A kill in step 1, after step 2, in step 4 and in step 6, each as soon as the file is there.
    for sign in ("pairs/last.pt", "pairs/ranking/reliable.json", "retrain1/last.pt", "retrain2/last.pt"):
        kill_at(out / sign, ["sh", REPOSITORY / "train_cisc_r.sh", *SMALL], chain_of(few_masks, out))
    done = script("train_cisc_r.sh", *SMALL, **chain_of(few_masks, out))
    assert done.returncode == 0, done.stderr
    assert results(out) == want

    # The result needs no teacher, and a changed list is refused by name.
    shutil.rmtree(out / "retrain1")
    done = script("evaluate.sh", "--workers", "0", CHECKPOINT=out / "retrain2/best.pt", DATA_ROOT=few_masks)
    assert done.returncode == 0, done.stderr
    splits.write_list(few_masks / "ImageSets/Segmentation/labelled.txt", ["demo_0001", "demo_0002"])
    done = script("train_cisc_r.sh", *SMALL, **chain_of(few_masks, whole))
    assert done.returncode == 2 and "holds a run whose data changed" in done.stderr
    command = ["sh", REPOSITORY / "train_cisc_r.sh", *SMALL, "--fresh"]
    kill_at(whole / "pairs/ranking/reliable.json", command, chain_of(few_masks, whole))
    done = script("train_cisc_r.sh", *SMALL, **chain_of(few_masks, whole))
    assert done.returncode == 0, done.stderr
    again = results(whole)
    assert len([key for key in again if key.startswith("pairs/ranking/scores")]) == 6, "of two labelled images"
    assert again["pairs/best.pt network.classifier.weight"] != want["pairs/best.pt network.classifier.weight"]


RETRAIN = ["--config", REPOSITORY / "configs/cisc_r/retrain.yaml", "--model.backbone", "timm:mobilenetv3_small_050"]


def retraining(root, teacher):
    """Flags of a retraining on `root`, with the masks as pseudo-labels."""
    return [*LOOP, *RETRAIN, "--data.root", root, "--data.train_split", "unlabelled", "--data.labels", "SegmentationClass",
            "--data.labelled.split", "labelled", "--teacher", teacher]  # fmt: skip


@pytest.fixture
def teacher(tmp_path):
    return untrained(tmp_path / "teacher.pt")


@pytest.mark.slow
def test_a_changed_teacher_or_partner_list_is_refused_on_resume(both_lists, teacher, tmp_path, cli):
    lists = tmp_path / "partners.json"
    lists.write_text(json.dumps({kind: ["demo_0001", "demo_0002"] for kind in open_index(both_lists, "train").classes}))
    flags = [*retraining(both_lists, teacher), "--data.partners.lists", lists, "--out", tmp_path / "run"]
    code, _, error = cli(train.main, *flags)
    assert code == 0, error
    content = lists.read_text()
    lists.write_text(content.replace("demo_0001", "demo_0003"))
    assert_refused(cli(train.main, *flags), "holds a run whose partners changed")
    lists.write_text(content)
    torch.save(torch.load(teacher, weights_only=True) | {"note": "another"}, teacher)
    assert_refused(cli(train.main, *flags), "holds a run whose teacher changed")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pairs", "retrain"])
def test_two_processes_train_like_one(stage, both_lists, teacher, tmp_path):
    for processes in (1, 2):
        flags = retraining(both_lists, teacher)
        if stage == "pairs":
            flags = [*LOOP, "--config", REPOSITORY / "configs/cisc_r/pairs.yaml", *RETRAIN[2:], "--data.root", both_lists,
                     "--data.labels", "SegmentationClass"]  # fmt: skip
        command = [REPOSITORY / "tests/steady.py", *flags, "--train.batch_size", "4", "--train.lr", "0.001"]
        done = launch(processes, *command, "--out", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "2", tmp_path / "1", weights=1e-5, losses=1e-3)
