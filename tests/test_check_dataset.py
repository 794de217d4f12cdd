"""tools.check_dataset, the plain layout, and the notes that training prints about a data set."""

import json
import shutil

import numpy as np
import pytest
from conftest import HEIGHT, REPOSITORY, WIDTH
from PIL import Image
from test_chain import SMALL

import evaluate
import predict
import train
from datasets import open_index
from datasets.drawing.demo import CLASSES
from datasets.files import PALETTE, read_label
from engine.pictures import TILE, captioned
from errors import UserError
from tools import check_dataset, scribbles, superpixels


@pytest.fixture
def check(tmp_path, cli):
    """Runs tools.check_dataset on a data set. Returns (exit code, problems, standard output)."""

    def call(root, *flags):
        code, output, error = cli(check_dataset.main, root, "--sheet", tmp_path / "sheet.png", "--workers", "1", *flags)
        assert "Traceback" not in error
        problems = [line.removeprefix("problem: ") for line in output.splitlines() if line.startswith("problem: ")]
        return code, problems, output

    return call


@pytest.fixture
def plain(root, tmp_path):
    """The tiny data set in the plain layout, with unusual file names. Labels are scribbles in train and masks in val."""
    folder = tmp_path / "plain"
    for split, count in (("train", 8), ("val", 3)):
        names = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        for number, name in enumerate(names[:count]):
            new = f"{split}/scène {number}/été"
            for kind, source, suffix in (
                ("images", f"JPEGImages/{name}.jpg", "JPG"),
                ("labels", f"{'scribbles' if split == 'train' else 'SegmentationClass'}/{name}.png", "png"),
            ):
                target = folder / kind / f"{new}.{suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / source, target)
    shutil.copy(root / "classes.txt", folder / "classes.txt")
    return folder


def test_tags_alone_are_checked_without_label_maps(root, check, tmp_path):
    shutil.rmtree(root / "scribbles")
    code, problems, output = check(root, "--labels", "tags.json")
    assert code == 1 and problems == [
        f"{root}/tags.json is missing, or lists no image of split train: write it by tools.tags or tools.prepare"
    ]
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    tags = {name: [CLASSES[1 + min(number, 4)], "cross"] for number, name in enumerate(names)} | {names[0]: []}
    (root / "tags.json").write_text(json.dumps(tags))
    code, problems, output = check(root, "--labels", "tags.json")
    assert code == 1 and problems == [
        f"{root}/tags.json: no image has the tag disc; the network cannot learn a class without tags"
    ]
    tags[names[0]] = ["disc", "cross"]
    (root / "tags.json").write_text(json.dumps(tags))
    code, problems, output = check(root, "--labels", "tags.json")
    assert code == 0 and problems == []
    assert (
        "8 images, 2.0 tags an image, 0 images without a tag" in output
        and "note: nearly all images have the tag cross" in output
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 192
    (root / f"JPEGImages/{names[3]}.jpg").write_bytes(b"no picture")
    code, problems, _ = check(root, "--labels", "tags.json")
    assert code == 1 and len(problems) == 1 and names[3] in problems[0]


def test_a_caption_takes_as_many_lines_as_it_needs():
    for shape in ((80, 96, 3), (300, 100, 3)):
        short, long = (captioned(np.zeros(shape, np.uint8), text) for text in ("cat", "cat, dog, " * 8))
        assert short.shape[1] == long.shape[1] == TILE and max(short.shape[0], long.shape[0]) <= TILE
        assert (long[-36:] < 128).any() and (long == 255).sum() > (short == 255).sum()


def test_a_sound_data_set_passes(root, check, tmp_path):
    code, problems, output = check(root)
    assert problems == [] and code == 0
    assert "8 images" in output and "3 images" in output and "100.00% of them agree with the masks" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 192


def overwrite(path, array):
    Image.fromarray(array).save(path)


def append(path, *names):
    path.write_text(path.read_text() + "\n".join(names) + "\n")


def label_background_as_disc(root):
    for path in (root / "scribbles").glob("*.png"):
        label = read_label(path)
        label[label == 0] = 1
        overwrite(path, label)


def label_all_background(root):
    for path in (root / "scribbles").glob("*.png"):
        overwrite(path, np.zeros_like(read_label(path)))


def remove_all_labels(root):
    for path in (root / "scribbles").glob("*.png"):
        overwrite(path, np.full_like(read_label(path), 255))


def save_in_colour(root):
    for path in (root / "scribbles").glob("*.png"):
        overwrite(path, np.where((label := read_label(path))[..., None] == 255, 224, PALETTE[label]).astype(np.uint8))


DAMAGE = {
    "missing label": (lambda root: (root / "scribbles/demo_0002.png").unlink(), ["demo_0002.png: label not found"]),
    "missing image": (lambda root: (root / "JPEGImages/demo_0002.jpg").unlink(), ["demo_0002: no image"]),
    "broken image": (lambda root: (root / "JPEGImages/demo_0002.jpg").write_bytes(b"x"), ["not a readable image"]),
    "empty image": (lambda root: (root / "JPEGImages/demo_0002.jpg").write_bytes(b""), ["not a readable image"]),
    "truncated label": (
        lambda root: (root / "SegmentationClass/demo_0009.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        ["demo_0009.png: not a readable label"],
    ),
    "other size": (lambda root: overwrite(root / "scribbles/demo_0001.png", np.zeros((9, 9), np.uint8)), ["is 9x9"]),
    "id outside the classes": (
        lambda root: overwrite(root / "scribbles/demo_0001.png", np.full((HEIGHT, WIDTH), 99, np.uint8)),
        ["label id 99 is outside"],
    ),
    "16 bits": (
        lambda root: overwrite(root / "scribbles/demo_0001.png", np.ones((HEIGHT, WIDTH), np.uint16)),
        ["this is I;16: save it as 8-bit grey"],
    ),
    "RGBA": (
        lambda root: overwrite(root / "scribbles/demo_0001.png", np.ones((HEIGHT, WIDTH, 4), np.uint8)),
        ["this is RGBA", "--convert"],
    ),
    "image in both splits": (lambda root: append(root / "ImageSets/Segmentation/train.txt", "demo_0009"), ["validation list"]),
    "image listed twice": (lambda root: append(root / "ImageSets/Segmentation/val.txt", "demo_0009"), ["more than once"]),
    "path out of the data set": (lambda root: append(root / "ImageSets/Segmentation/val.txt", "../demo_0009"), ["leads out"]),
    "disagreement": (label_background_as_disc, ["agree with the masks"]),
    "black": (label_all_background, ["background is the only class"]),
    "unlabelled": (remove_all_labels, ["no pixel is labelled"]),
    "unseen class": (lambda root: append(root / "classes.txt", "unicorn"), ["no pixel is labelled unicorn"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_dataset_finds_each_kind_of_damage(root, check, damage):
    harm, messages = DAMAGE[damage]
    harm(root)
    code, problems, output = check(root)
    assert code == 1
    for message in messages:
        assert any(message in problem for problem in problems), output


def test_one_bad_entry_does_not_hide_the_other_problems(root, check):
    append(root / "ImageSets/Segmentation/train.txt", "../way_out")
    (root / "JPEGImages/demo_0002.jpg").unlink()
    (root / "scribbles/demo_0003.png").unlink()
    code, problems, output = check(root)
    assert code == 1 and len(problems) == 3, problems
    assert "train" in output and "7 images" in output


def test_a_split_list_may_have_suffixes_and_a_byte_order_mark(root):
    names = root / "ImageSets/Segmentation/val.txt"
    names.write_text("\ufeff" + "".join(f"{name}.jpg\n" for name in names.read_text().split()), encoding="utf-8")
    assert open_index(root, "val", "SegmentationClass").names[0] == "demo_0008"


def test_convert_turns_coloured_labels_into_class_ids(root, check, tmp_path, cli):
    before = {path.name: read_label(path) for path in (root / "scribbles").glob("*.png")}
    save_in_colour(root)
    for path in (root / "scribbles").glob("*.png"):
        with Image.open(path) as image:
            picture = np.array(image)
        picture[(picture == 224).all(axis=2)] = (224, 224, 192)
        overwrite(path, picture)
    code, problems, _ = check(root)
    assert code == 1 and "--convert" in problems[0]
    code, _, output = check(root, "--convert", tmp_path / "ids")
    assert code == 0 and "8 written" in output
    for path in (tmp_path / "ids").glob("*.png"):
        assert (read_label(path) == before[path.name]).all()
    (tmp_path / "colours.txt").write_text("0 0 0\n1 2 3\n")
    code, _, _ = check(root, "--convert", tmp_path / "others", "--colours", tmp_path / "colours.txt")
    assert code == 1 and not list((tmp_path / "others").glob("*.png")), "nothing is written if a colour has no class"
    for line, message in (("224 224 192", "by --void"), ("0 0 256", "from 0 to 255")):
        (tmp_path / "colours.txt").write_text(line)
        code, _, error = cli(check_dataset.main, root, "--convert", tmp_path / "none", "--colours", tmp_path / "colours.txt")
        assert code == 2 and message in error


def test_the_void_colour_wins_over_a_class_with_the_same_colour(root, check, tmp_path):
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[5] = 255
    for path in (root / "scribbles").glob("*.png"):
        overwrite(path, picture)
    (tmp_path / "colours.txt").write_text("0 0 0\n255 255 255\n")
    flags = ["--convert", tmp_path / "ids", "--colours", tmp_path / "colours.txt", "--void", "[0, 0, 0]"]
    assert check(root, *flags)[0] == 0
    label = read_label(tmp_path / "ids/demo_0000.png")
    assert (label[5] == 1).all() and (label[:5] == 255).all()


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "message"), [
    (label_all_background, "background is the only class in the images read"), (remove_all_labels, "no pixel is labelled"),
])  # fmt: skip
def test_training_prints_a_note_about_empty_labels(root, tmp_path, cli, harm, message):
    harm(root)
    code, output, _ = cli(train.main, *SMALL, "--train.steps", "1", "--data.root", root, "--out", tmp_path / "run")
    assert code == 0 and f"note: {root}/scribbles: {message}" in output


@pytest.mark.slow
def test_unreadable_masks_of_training_images_do_not_stop_training(root, tmp_path, cli):
    for path in (root / "SegmentationClass").glob("demo_000[0-7].png"):
        path.write_bytes(b"no picture")
    code, _, _ = cli(train.main, *SMALL, "--train.steps", "1", "--data.root", root, "--out", tmp_path / "run")
    assert code == 0 and (tmp_path / "run/pictures.png").is_file()


@pytest.mark.slow
def test_training_prints_notes_about_problems_in_the_split_lists(root, tmp_path, cli):
    append(root / "ImageSets/Segmentation/train.txt", "demo_0009", "demo_0001")
    code, output, _ = cli(train.main, *SMALL, "--train.steps", "1", "--data.root", root, "--out", tmp_path / "run")
    assert code == 0
    assert "note: demo_0009 is in the training and in the validation list" in output
    assert "note: demo_0001 is in the training list more than once" in output


@pytest.mark.slow
def test_the_plain_layout_works_with_every_command(plain, tmp_path, cli):
    config = [
        "--config",
        REPOSITORY / "configs/cc4s/ur.yaml",
        *SMALL,
        "--data.truth",
        "labels",
        "--data.labels",
        "labels",
    ]
    assert cli(superpixels.main, plain, "--segments", "60", "--workers", "1")[0] == 0
    code, _, error = cli(train.main, *config, "--data.root", plain, "--out", tmp_path / "ur")
    assert code == 0, error
    checkpoint = ["--checkpoint", tmp_path / "ur/best.pt"]
    scores = [*checkpoint, "--data.root", plain, "--data.labels", "labels", "--out", tmp_path / "scores"]
    assert cli(evaluate.main, *scores)[0] == 0
    assert set(json.loads((tmp_path / "scores/metrics.json").read_text())["iou"]) == set(CLASSES)
    pseudo = ["--images", plain, "--split", "train", "--pseudo_labels", "--scribbles", plain / "labels"]
    code, _, error = cli(predict.main, *checkpoint, *pseudo, "--threshold", "0", "--out", tmp_path / "pseudo")
    assert code == 0, error
    written = {path.relative_to(tmp_path / "pseudo").as_posix() for path in (tmp_path / "pseudo").rglob("*.png")}
    assert written == {f"train/scène {number}/été.png" for number in range(8)}
    assert cli(scribbles.main, "shrink", "--scribbles", plain / "labels", "--ratio", "0", "--out", tmp_path / "s")[0] == 0


def test_a_split_of_the_plain_layout_may_be_a_list(plain):
    (plain / "some.txt").write_text("train/scène 3/été.JPG\nval/scène 0/été\n")
    index = open_index(plain, "some", "labels")
    assert index.names == ("train/scène 3/été", "val/scène 0/été") and index.images[0].suffix == ".JPG"
    (plain / "some.txt").write_text("../secret\n/etc/passwd\n")
    with pytest.raises(UserError, match=r"some\.txt: none of its names .*/etc/passwd"):
        open_index(plain, "some", problems=[])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "classes.txt not found"),
        (lambda root: shutil.rmtree(root / "images/train"), "no split train"),
        (lambda root: [path.unlink() for path in (root / "images/train").rglob("*.JPG")], "no image in it"),
        (lambda root: (root / "train.txt").write_text("nothing\n"), "nothing is not among the images"),
        (lambda root: (root / "train.txt").write_text("/etc/passwd\n"), "leads out"),
        (lambda root: (root / "labels/train/scène 1/été.png").unlink(), "1 of the split's 8 labels"),
        (
            lambda root: shutil.copy(root / "images/train/scène 1/été.JPG", root / "images/train/scène 1/été.png"),
            "two images of one name",
        ),
        (lambda root: (root / "images").rename(root / "pictures"), "holds neither JPEGImages nor images"),
        (
            lambda root: (root / "tags.json").write_text('{"train/scène 1/été": ["disc"]}'),
            "a list of class names is expected for every image",
        ),
        (
            lambda root: (root / "tags.json").write_text(json.dumps({f"train/scène {n}/été": [1] for n in range(8)})),
            "1 is not one of the classes",
        ),
        (lambda root: (root / "tags.json").write_text("{"), "not readable as JSON"),
        (lambda root: (root / "tags.json").write_text("[1, 2]"), "{image name: [class, ...]} is expected"),
    ],
)
def test_mistakes_in_the_plain_layout_give_one_error_line(plain, tmp_path, cli, harm, message):
    harm(plain)
    config = [*SMALL, "--data.labels", "labels", "--data.truth", "labels"]
    code, _, error = cli(train.main, *config, "--data.root", plain, "--out", tmp_path / "run")
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
