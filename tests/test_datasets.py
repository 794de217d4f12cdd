"""The VOC layout, the joint transform, batches and the demo data."""

import colorsys
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH
from PIL import Image

from config import Config, DataConfig, ModelConfig
from datasets import open_index
from datasets.batch import collate, to_device
from datasets.drawing.demo import CLASSES, draw_demo, draw_picture
from datasets.files import NO_SUPERPIXEL, PALETTE, UNLABELLED, read_image, read_label, write_label
from datasets.folder_layout import images_below
from datasets.official.voc import VOC_CLASSES
from datasets.segmentation import SegmentationDataset, Superpixels, TrainingOrder
from datasets.transforms import MEAN, STD, Augmentation, jittered, normalise, to_tensor
from engine.distributed import Process
from engine.preparation import open_training
from errors import UserError
from methods import build_method
from methods.blpseg import BLPSegConfig


def still(crop, **changes):
    """An augmentation that only crops, except for `changes`."""
    settings = {"scale": (1.0, 1.0), "rotation": 0.0, "rotation_probability": 0.0, "flip": 0.0}
    return Augmentation(crop, **(settings | changes))


# The index


def test_the_index_has_the_images_and_classes_of_the_split(tiny):
    index = open_index(tiny, "val", "SegmentationClass")
    assert index.names == ("demo_0008", "demo_0009", "demo_0010")
    assert index.classes == CLASSES
    assert all(path.is_file() for path in (*index.images, *index.labels))


def test_classes_default_to_the_voc_classes(root):
    (root / "classes.txt").unlink()
    assert open_index(root, "val").classes == VOC_CLASSES


def test_the_label_folder_may_be_any_path(root, tmp_path):
    elsewhere = shutil.move(root / "scribbles", tmp_path / "pseudo")
    assert open_index(root, "train", elsewhere).labels[0].parent == tmp_path / "pseudo"


def test_the_palette_is_the_voc_palette():
    assert PALETTE[[0, 1, 2, 3, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip


@pytest.mark.parametrize("damage, message", [
    (lambda root: shutil.rmtree(root), "not found"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(), "a split is a text file"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("\n \n"), "split is empty"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("../../secret\n"), "leads out"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("/etc/passwd\n"), "leads out"),
    (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text("nobody\n"), "no image with this name"),
    (lambda root: (root / "scribbles/demo_0003.png").unlink(), "1 of the split's 8 labels"),
    (lambda root: shutil.rmtree(root / "scribbles"), "label folder"),
    (lambda root: (root / "classes.txt").write_text("alone\n"), "1 classes"),
    (lambda root: (root / "classes.txt").write_text("sky\nroad\nsky\n"), "sky is listed twice"),
    (lambda root: (root / "classes.txt").write_bytes(b"caf\xe9\nbar\n"), "UTF-8"),
])  # fmt: skip
def test_the_error_for_a_damaged_data_set_names_the_problem(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        open_index(root, "train", "scribbles")


# Reading


@pytest.mark.parametrize("damage, message", [
    (lambda root: (root / "JPEGImages/demo_0000.jpg").write_bytes(b""), "not a readable image"),
    (lambda root: (root / "JPEGImages/demo_0000.jpg").write_bytes(b"\xff\xd8 no picture"), "not a readable image"),
    (lambda root: (root / "scribbles/demo_0000.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "not a readable label"),
    (lambda root: Image.new("RGB", (WIDTH, HEIGHT)).save(root / "scribbles/demo_0000.png"), "palette or grey"),
    (lambda root: Image.new("L", (WIDTH, HEIGHT), 9).save(root / "scribbles/demo_0000.png"), "label id 9 is outside the 7"),
    (lambda root: Image.new("L", (100, HEIGHT)).save(root / "scribbles/demo_0000.png"), f"is 100x{HEIGHT}, its image"),
])  # fmt: skip
def test_the_error_for_a_bad_file_names_the_file(root, damage, message):
    damage(root)
    dataset = SegmentationDataset(open_index(root, "train", "scribbles"))
    with pytest.raises(UserError, match=message) as caught:
        dataset.read(0)
    assert "demo_0000" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_written_labels_read_back_unchanged_in_palette_colours(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_label(tmp_path / "label.png", label)
    assert (read_label(tmp_path / "label.png") == label).all()
    assert (np.asarray(Image.open(tmp_path / "label.png").convert("RGB")) == PALETTE[label]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_a_damaged_image_is_refused_without_messages_of_the_reader(tmp_path, capfd, suffix):
    picture = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    whole = cv2.imencode(suffix, picture)[1].tobytes()
    file = tmp_path / f"image{suffix}"
    damages = [whole[:40], whole[: len(whole) // 2]]
    if suffix == ".png":  # PNG has checksums
        damages.append(whole[:200] + bytes(40) + whole[240:])
    for data in damages:
        file.write_bytes(data)
        with pytest.raises(UserError, match=re.escape(f"{file}: not a readable image")):
            read_image(file)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_an_image_of_16_bits_keeps_its_contrast(tmp_path, suffix):
    """Scanners and microscopes write 12 bits into 16."""
    values = np.linspace(100, 4095, 20 * 30).reshape(20, 30).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"scan.{suffix}"), values)
    image = read_image(tmp_path / f"scan.{suffix}")
    wanted = 255 * (values - 100.0) / 3995
    assert image.dtype == np.uint8 and np.abs(image - wanted[..., None]).max() <= 0.51


def test_hidden_files_are_no_images(tmp_path):
    for name in ("a/x.png", "a/._x.png", ".cache/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(images_below(tmp_path)) == ["a/x"]


def test_image_suffixes_may_be_in_capitals(root):
    picture = root / "JPEGImages/demo_0001.jpg"
    picture.rename(picture.with_suffix(".JPG"))
    assert open_index(root, "train").images[1] == picture.with_suffix(".JPG")


# The transform


def test_the_augmentation_moves_image_and_maps_together():
    """Each colour stands for a label. Colours and labels must still agree, except at edges, which interpolation blurs."""
    label = np.kron(np.array([[0, 1], [2, 3]]), np.ones((60, 80))).astype(np.uint8)
    image = np.repeat(label[..., None] * 60, 3, axis=2)
    augment = still(90, scale=(0.5, 2.0), rotation=30.0, rotation_probability=1.0, flip=0.5)
    for seed in range(20):
        got, maps = augment(image, {"label": label, "superpixel": label.astype(np.uint16)}, np.random.default_rng(seed))
        inside = maps["label"] != UNLABELLED
        flat = np.ptp(np.stack([np.roll(maps["label"], s, a) for s in (-2, 2) for a in (0, 1)] + [maps["label"]]), axis=0) == 0
        flat[:2], flat[-2:], flat[:, :2], flat[:, -2:] = False, False, False, False
        assert np.abs(got[inside & flat].astype(int) - 60 * maps["label"][inside & flat][:, None]).max() <= 2
        assert (maps["superpixel"][inside] == maps["label"][inside]).all()
        assert (maps["superpixel"][~inside] == NO_SUPERPIXEL).all()


def test_augmentations_have_the_configured_frequency_and_strength():
    augment = still(90, scale=(0.5, 2.0), rotation=10.0, rotation_probability=0.5, flip=0.25)
    scales, angles, mirrored = [], [], []
    for seed in range(1000):
        linear = augment.affine(120, 160, np.random.default_rng(seed))[:, :2]
        scales.append(np.sqrt(abs(np.linalg.det(linear))))
        angles.append(np.rad2deg(np.arctan2(linear[0, 1], linear[1, 1])))
        mirrored.append(np.linalg.det(linear) < 0)
    assert 0.5 <= min(scales) < 0.55 and 1.95 < max(scales) <= 2 and np.mean(scales) == pytest.approx(1.25, abs=0.05)
    assert -10 <= min(angles) < -9.5 and 9.5 < max(angles) <= 10
    assert np.mean(np.abs(angles) > 1e-9) == pytest.approx(0.5, abs=0.05)
    assert np.mean(mirrored) == pytest.approx(0.25, abs=0.05)

    checks = np.repeat(np.indices((40, 40)).sum(axis=0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)
    contrast = [still(40, blur=0.5)(checks, {}, np.random.default_rng(seed))[0].std() for seed in range(200)]
    whole = max(contrast)
    assert np.mean(np.array(contrast) < 0.9 * whole) == pytest.approx(0.5 * 0.8, abs=0.12), "sigma under 0.35 hardly shows"


def test_a_flip_alone_is_an_exact_mirror():
    image = np.random.default_rng(0).integers(0, 255, (33, 33, 3), dtype=np.uint8)
    got, maps = still(33, flip=1.0)(image, {"label": image[..., 0]}, np.random.default_rng(0))
    assert (got == image[:, ::-1]).all()
    assert (maps["label"] == image[:, ::-1, 0]).all()


def test_each_map_has_its_own_padding_and_the_image_the_mean_colour():
    image = np.full((10, 10, 3), 255, np.uint8)
    dtypes = {"label": np.uint8, "superpixel": np.uint16, "boundary": np.uint8}
    maps = {name: np.zeros((10, 10), dtype) for name, dtype in dtypes.items()}
    got, maps = still(30)(image, maps, np.random.default_rng(0))
    outside = maps["label"] == UNLABELLED
    assert 790 <= outside.sum() <= 810
    assert (maps["superpixel"][outside] == NO_SUPERPIXEL).all()
    assert (maps["boundary"][outside] == 1).all()
    assert np.abs(np.median(got[outside], axis=0) - 255 * MEAN).max() <= 1  # median: interpolation blends the rim
    assert normalise(to_tensor(got))[:, outside].median(dim=1).values.abs().max() < 0.02


def test_crops_reach_every_part_of_the_image():
    label = np.arange(200, dtype=np.uint8).reshape(1, 200).repeat(40, axis=0)
    image = np.zeros((40, 200, 3), np.uint8)
    starts = [still(40)(image, {"label": label}, np.random.default_rng(seed))[1]["label"][0, 0] for seed in range(300)]
    assert min(starts) < 8 and max(starts) > 152


def test_images_are_normalised_by_channel_and_stay_channels_last():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    got = normalise(to_tensor(image))
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), (image / 255 - MEAN) / STD, atol=1e-5)
    assert normalise(to_tensor(image)[None]).is_contiguous(memory_format=torch.channels_last)


# Items and batches


@pytest.fixture
def with_superpixels(tiny, tmp_path):
    """A data set with two hand-made superpixels per image, 0 on the left and 1 on the right, and one edge between them."""
    index, superpixels = open_index(tiny, "train", "scribbles"), Superpixels(tmp_path / "superpixels")
    halves = np.zeros((HEIGHT, WIDTH), np.uint16)
    halves[:, WIDTH // 2 :] = 1
    for name in index.names:
        for path in (superpixels.map(name), superpixels.boundary(name), superpixels.edges(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(halves).save(superpixels.map(name))
        Image.fromarray(np.uint8(255) * (np.abs(np.diff(halves.astype(int), axis=1, append=1)) > 0)).save(
            superpixels.boundary(name)
        )
        np.savez(superpixels.edges(name), edges=np.array([[0, 1]], np.int32), weights=np.array([0.5], np.float32))
    return SegmentationDataset(index, still(65), superpixels)


def test_a_batch_has_the_documented_shapes_and_dtypes(with_superpixels):
    batch = to_device(collate([with_superpixels[(0, number)] for number in range(4)]), torch.device("cpu"))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["image"].shape == (4, 3, 65, 65) and batch["image"].dtype == torch.float32
    assert batch["label"].shape == (4, 65, 65) and batch["label"].dtype == torch.int64
    assert batch["boundary"].shape == (4, 65, 65) and batch["boundary"].dtype == torch.bool
    assert batch["superpixel"].shape == (4, 65, 65) and batch["superpixel"].dtype == torch.int32
    assert batch["edges"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch["edge_weights"].tolist() == [0.5] * 4
    assert batch["superpixel_starts"] == [0, 2, 4, 6, 8] and batch["edge_starts"] == [0, 1, 2, 3, 4]


def test_boundary_pixels_are_those_of_the_map_and_outside_the_image(with_superpixels):
    """In the hand-made map, the boundary is the last column of the left half."""
    with_superpixels.augment = still(120)
    for number in range(8):
        item = with_superpixels[(0, number)]
        left = item["superpixel"] == 0
        seam = left & (item["superpixel"].roll(-1, 1) == 1)
        assert seam.any() and item["outside"].any()
        assert torch.equal(item["boundary"], seam | item["outside"])


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_jitter_equals_its_formula(kind):
    """Compares a random image with the formula of each change, for the factor that the generator draws."""
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    place = ["brightness", "contrast", "saturation", "hue"].index(kind)
    strength = tuple(0.4 * (number == place) for number in range(4))
    got = jittered(image, strength, np.random.default_rng(3)).astype(float)
    draws = np.random.default_rng(3)
    factors = [draws.uniform(1 - limit, 1 + limit) for limit in strength[:3]] + [draws.uniform(-strength[3], strength[3])]
    grey = image @ [0.2989, 0.587, 0.114]
    if kind == "hue":
        for pixel, new in zip(image.reshape(-1, 3) / 255, got.reshape(-1, 3) / 255, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            wanted = colorsys.hsv_to_rgb((hue + factors[3]) % 1, saturation, value)
            np.testing.assert_allclose(new, wanted, atol=1.5 / 255)
        return
    towards = {"brightness": 0.0, "contrast": np.floor(grey).mean(), "saturation": np.floor(grey)[..., None]}[kind]
    wanted = np.clip(factors[place] * image + (1 - factors[place]) * towards, 0, 255)
    assert abs(factors[place] - 1) > 0.05
    np.testing.assert_allclose(got, wanted, atol=1.5)


def test_items_mark_pixels_outside_the_image(tiny):
    dataset = SegmentationDataset(open_index(tiny, "train", "SegmentationClass"), still(200))
    item = dataset[(0, 0)]
    assert torch.equal(item["outside"], item["label"] == UNLABELLED)
    assert not item.keys() & {"superpixel", "boundary"}


def test_tags_of_the_data_set_win_over_tags_of_the_labels(root):
    names = open_index(root, "train", "scribbles").names
    (root / "tags.json").write_text(json.dumps({name: ["disc"] for name in names}))
    index = open_index(root, "train", "scribbles")
    item = SegmentationDataset(index)[0]
    assert [name for name, tag in zip(index.classes[1:], item["tags"], strict=True) if tag] == ["disc"]
    assert set(item["label"].unique().tolist()) - {0, 255, index.classes.index("disc")}, "the labels have other classes"


def test_a_split_may_be_a_file_anywhere(tiny, tmp_path):
    names = open_index(tiny, "train").names
    (tmp_path / "half.txt").write_text("\n".join(names[::2]))
    index = open_index(tiny, str(tmp_path / "half.txt"), "scribbles")
    assert index.names == names[::2] and index.labels == open_index(tiny, "train", "scribbles").labels[::2]
    with pytest.raises(UserError, match=r"none\.txt not found"):
        open_index(tiny, str(tmp_path / "none.txt"))


def test_training_takes_tags_from_the_labels_or_from_the_file(root):
    process = Process(0, 1, torch.device("cpu"))

    def training(tags):
        config = Config(BLPSegConfig(), data=DataConfig(root=str(root), tags=tags))
        return open_training(config, build_method(config.method, ModelConfig("resnet18"), 7), process)

    with pytest.raises(UserError, match=r"tags\.json is missing"):
        training("file")
    names = open_index(root, "train", "scribbles").names
    (root / "tags.json").write_text(json.dumps({name: ["disc"] for name in names}))
    assert training("file").index.tags.sum() == len(names)
    item = training("labels")[(0, 0)]
    whole = read_label(root / "scribbles" / f"{names[0]}.png")
    assert [float(number in whole) for number in range(1, 7)] == item["tags"].tolist()


def test_tags_default_to_the_classes_labelled_in_the_whole_image(tiny):
    dataset = SegmentationDataset(open_index(tiny, "train", "scribbles"), still(33))
    for number in range(len(dataset)):
        label = read_label(dataset.index.labels[number])
        present = [float(c in label) for c in range(1, len(dataset.index.classes))]
        assert dataset[(0, number)]["tags"].tolist() == present and sum(present) > 0


def test_items_may_have_boundaries_without_the_superpixel_graph(with_superpixels):
    whole = with_superpixels[(0, 1)]
    with_superpixels.superpixels = Superpixels(with_superpixels.superpixels.folder, graph=False)
    item = with_superpixels[(0, 1)]
    assert whole.keys() - item.keys() == {"superpixel", "edges", "edge_weights"}
    assert torch.equal(item["boundary"], whole["boundary"]) and torch.equal(item["image"], whole["image"])


def test_superpixel_ids_are_distinct_across_a_batch(with_superpixels):
    batch = collate([with_superpixels[(epoch, 0)] for epoch in range(6)])
    for number, superpixel in enumerate(batch["superpixel"]):
        assert set(superpixel.unique().tolist()) <= {-1, 2 * number, 2 * number + 1}


def test_the_error_for_missing_superpixels_names_the_command(with_superpixels):
    with_superpixels.superpixels.edges("demo_0002").unlink()
    with pytest.raises(UserError, match=r"demo_0002 .*1 of 8 .*tools.superpixels"):
        with_superpixels.superpixels.check(with_superpixels.index.names)


def test_an_item_depends_only_on_seed_epoch_and_position(tiny):
    index = open_index(tiny, "train", "scribbles")
    augment = still(65, scale=(0.5, 2.0), blur=1.0)
    first, same_seed, other_seed = (SegmentationDataset(index, augment, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[(3, 2)]["image"], same_seed[(3, 2)]["image"])
    assert not torch.equal(first[(3, 2)]["image"], first[(4, 2)]["image"])
    assert not torch.equal(first[(3, 2)]["image"], other_seed[(3, 2)]["image"])


def test_training_order_has_full_batches_shared_by_all_processes():
    batches = list(TrainingOrder(length=10, batch_size=4, steps=5, seed=0))
    assert [len(batch) for batch in batches] == [4] * 5
    draws = [draw for batch in batches for draw in batch]
    assert sorted(draws) == [(epoch, place) for epoch in (0, 1) for place in range(10)]
    shares = [list(TrainingOrder(10, 4, 5, 0, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == batches
    assert list(TrainingOrder(10, 4, 5, seed=1)) != batches


def test_a_batch_may_be_larger_than_the_data_set():
    (batch,) = TrainingOrder(length=3, batch_size=8, steps=1, seed=0)
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


# The demo data


def test_the_same_seed_draws_the_same_demo(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_demo(tmp_path / name, train=2, val=1, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    content = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in "abc"}
    assert content["a"] == content["b"] != content["c"]
    draw_demo(tmp_path / "a", train=2, val=1)  # as if another process had drawn it meanwhile
    assert content["a"] == [(tmp_path / "a" / file).read_bytes() for file in files]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_colour_alone_does_not_solve_the_demo():
    """Learns the most likely class of each of 4,096 colours from dense masks. This classifier must have a low mIoU."""
    pictures = [draw_picture(np.random.default_rng((0, number))) for number in range(30)]
    colours = [(image.astype(int) // 16) @ (256, 16, 1) for image, _ in pictures]
    counts, matrix = np.zeros((len(CLASSES), 4096)), np.zeros((len(CLASSES), len(CLASSES)))
    for colour, (_, mask) in zip(colours[:20], pictures, strict=False):
        np.add.at(counts, (mask, colour), 1)
    for colour, (_, mask) in zip(colours[20:], pictures[20:], strict=True):
        np.add.at(matrix, (mask, counts.argmax(0)[colour]), 1)
    hit = matrix.diagonal()
    assert (hit / (matrix.sum(0) + matrix.sum(1) - hit)).mean() < 0.45, "the demo's networks have 75 and more"


def test_demo_scribbles_agree_with_the_masks_and_are_sparse(tiny):
    for name in open_index(tiny, "train").names:
        scribble, mask = (read_label(tiny / folder / f"{name}.png") for folder in ("scribbles", "SegmentationClass"))
        drawn = scribble != UNLABELLED
        assert (scribble[drawn] == mask[drawn]).all()
        assert 0.005 < drawn.mean() < 0.2  # of small pictures; of the demo, 2 to 7%
