"""Scribbles from ScribbleSup's XML, from masks and from clicks; shrunk and dropped strokes."""

import itertools
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label as connected

from datasets import class_names
from datasets.drawing.scribbles import draw_scribbles, generator
from datasets.drawing.strokes import EIGHT_NEIGHBOURS, drop, line, shrink, strokes
from datasets.files import read_label
from datasets.official.scribblesup import class_of
from errors import UserError
from tools import points, scribbles

ANNOTATION = "<annotation><filename>{name}</filename><size><width>60</width><height>40</height></size>{polygons}</annotation>"
RATIOS = (0, 0.1, 0.3, 0.5, 0.8, 1)


def polygon(tag, *points):
    return f"<polygon><tag>{tag}</tag>" + "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in points) + "</polygon>"


def write_xml(folder, name, *polygons):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.xml").write_text(ANNOTATION.format(name=name, polygons="".join(polygons)))


def test_xml_annotations_become_label_maps(tmp_path, cli):
    write_xml(
        tmp_path / "xml",
        "a b é",
        polygon("plane", (10, 10), (30, 10)),
        polygon("background", (20, 2), (20, 20)),
        polygon("monitor", (50, 30)),
        polygon("motorbike", (55, 5), (90, 5)),
        polygon("table", (-20, -20)),
        polygon("bike"),
    )
    code, _output, _ = cli(scribbles.main, "xml2png", "--xml", tmp_path / "xml", "--out", tmp_path / "png", "--workers", "1")
    label = read_label(tmp_path / "png" / "a b é.png")
    assert code == 0 and label.shape == (40, 60)
    assert (label[9:12, 12:18] == 1).all() and label[12, 15] == 255, "a line of 3 pixels"
    assert (label[5:18, 19:22] == 0).all(), "the later stroke lies over the earlier"
    assert (label == 20).sum() == 5 and label[30, 50] == 20, "a point is a dot"
    assert (label[4:7, 56:] == 14).all(), "pixels outside the image are cut"
    assert set(np.unique(label)) == {0, 1, 14, 20, 255}
    with Image.open(tmp_path / "png" / "a b é.png") as image:
        assert image.mode == "P" and image.getpalette()[3:6] == [128, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><size>", "not well-formed XML"),
        ("", "not well-formed XML"),
        ('<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>', "entities"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "entities"),
        (ANNOTATION.format(name="x", polygons=polygon("unicorn", (1, 1))), "'unicorn' is none of the 21 classes"),
        (ANNOTATION.format(name="x", polygons=polygon("trian", (1, 1))), "the nearest is train"),
        (ANNOTATION.format(name="x", polygons=polygon("train", ("one", 1))), "a number is expected"),
        (ANNOTATION.format(name="x", polygons=polygon("train", ("nan", 1))), "a finite number is expected"),
        ("<annotation/>", "size/height is missing"),
        (
            ANNOTATION.replace("60", "600000").replace("40", "600000").format(name="x", polygons=""),
            "is not the size of an image",
        ),
        (ANNOTATION.replace("60", "-3").format(name="x", polygons=""), "not the size of an image"),
    ],
)
def test_bad_annotations_are_named_and_do_not_stop_the_others(tmp_path, cli, content, message):
    write_xml(tmp_path / "xml", "good", polygon("cat", (1, 1), (9, 9)))
    (tmp_path / "xml" / "bad.xml").write_text(content)
    code, output, error = cli(scribbles.main, "xml2png", "--xml", tmp_path / "xml", "--out", tmp_path / "png", "--workers", "1")
    assert code == 1 and "1 written" in output and "1 failed" in output
    failed = [text for text in error.splitlines() if text.startswith("failed: ")]
    assert len(failed) == 1 and "bad.xml" in failed[0] and message in failed[0]
    assert {path.name for path in (tmp_path / "png").iterdir()} == {"good.png", "scribbles.json"}


def test_the_class_list_decides_the_meaning_of_a_tag(tmp_path):
    voc, context = class_names("voc"), class_names("context")
    assert len(voc) == 21 and len(context) == 60
    assert voc[class_of("table", voc, tmp_path)] == "diningtable"
    assert context[class_of("table", context, tmp_path)] == "table"
    assert voc[class_of("potted plant", voc, tmp_path)] == "pottedplant"
    assert context[class_of("plant", context, tmp_path)] == "pottedplant"
    assert [context[class_of(tag, context, tmp_path)] for tag in ("bedclothes", "track", "cloth")] == [
        "bedclothes",
        "track",
        "cloth",
    ]
    with pytest.raises(UserError, match="none of the 21"):
        class_of("bedclothes", voc, tmp_path)


def test_lines_have_the_requested_width():
    x = np.arange(20, 180.0)
    for width in (1, 2, 3, 5, 8):
        covered = line((60, 200), np.stack([x, np.full_like(x, 30)], 1), width)
        assert covered[:, 60:140].sum() == 80 * width
    assert not line((60, 200), np.array([[300.0, 30], [1e9, 30]]), 3).any()


def naive_distance(stroke, start):
    """Length of the shortest path on the pixels of a stroke. Relaxes every step until nothing changes."""
    distance = np.full(stroke.shape, np.inf)
    distance[start] = 0
    changed = True
    while changed:
        changed = False
        for y, x in np.argwhere(stroke):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    v, u = y + dy, x + dx
                    if (0 <= v < stroke.shape[0] and 0 <= u < stroke.shape[1]) and stroke[v, u]:
                        candidate = distance[v, u] + np.hypot(dy, dx)
                        if candidate < distance[y, x] - 1e-9:
                            distance[y, x], changed = candidate, True
    return distance


def hand_drawn():
    """A label of three strokes: a wave, a ring and a dot."""
    label = np.full((60, 80), 255, np.uint8)
    x = np.arange(5, 70.0)
    label[line(label.shape, np.stack([x, 12 + 5 * np.sin(x / 9)], 1), 3)] = 2
    turn = np.linspace(0, 2 * np.pi, 40)
    label[line(label.shape, np.stack([30 + 12 * np.cos(turn), 42 + 12 * np.sin(turn)], 1), 2)] = 0
    label[50:52, 70:72] = 2
    return label


def test_shrink_keeps_the_middle_and_a_smaller_ratio_keeps_a_subset():
    label = hand_drawn()
    assert len(list(strokes(label))) == 3
    kept = [shrink(label, ratio) for ratio in RATIOS]
    for less, more in itertools.pairwise(kept):
        assert (less[less != 255] == more[less != 255]).all() and (less != 255).sum() < (more != 255).sum()
    assert (kept[-1] == label).all() and (kept[0] != 255).sum() == 3, "the whole label, and one pixel per stroke"
    for ratio, part in zip(RATIOS, kept, strict=True):
        assert connected(part == 0, EIGHT_NEIGHBOURS)[1] == 1, "one piece of the ring, not two"
        assert abs((part == 0).sum() / (label == 0).sum() - ratio) < 0.1 or ratio == 0
    wave = label.copy()
    wave[20:] = 255
    ((row, column),) = np.argwhere(shrink(wave, 0) != 255)
    assert abs(column - 37) <= 3, "the middle of the wave"
    distance = naive_distance(wave == 2, (row, column))
    expected = (wave == 2) & (distance <= 0.5 * distance[wave == 2].max())
    assert ((shrink(wave, 0.5) == 2) == expected).all()


def test_drop_keeps_whole_strokes_and_at_least_one():
    label = hand_drawn()
    sizes = {(number, int(stroke.sum())) for number, _, stroke in strokes(label)}
    counts = []
    for seed in range(200):
        kept = [drop(label, probability, np.random.default_rng(seed)) for probability in (0, 0.3, 0.5, 0.9, 1)]
        assert (kept[0] == label).all()
        for more, less in itertools.pairwise(kept):
            assert (less[less != 255] == more[less != 255]).all()
        for part in kept:
            assert {(number, int(stroke.sum())) for number, _, stroke in strokes(part)} <= sizes
        assert len(list(strokes(kept[-1]))) == 1
        counts.append(len(list(strokes(kept[2]))))
    assert abs(np.mean(counts) / 3 - (0.5 + 0.5**3 / 3)) < 0.06, "half of the strokes, or one if all would be dropped"


def test_an_empty_label_stays_empty():
    empty = np.full((9, 9), 255, np.uint8)
    assert (shrink(empty, 0.5) == 255).all() and (drop(empty, 0.5, np.random.default_rng(0)) == 255).all()


@pytest.mark.slow
def test_generated_scribbles_stay_inside_every_shape():
    rng = np.random.default_rng(0)
    for trial in range(60):
        mask = np.zeros((120, 160), np.uint8)
        for number in range(1, 6):
            blob = cv2.GaussianBlur(rng.standard_normal(mask.shape), (0, 0), float(rng.uniform(1, 12)))
            mask[blob > np.quantile(blob, rng.uniform(0.6, 0.98))] = number
        mask[rng.integers(120)] = 255
        mask[:, rng.integers(160)] = 7  # a class one pixel wide
        drawn = draw_scribbles(mask, np.random.default_rng(trial), width=int(rng.integers(1, 6)))
        labelled = drawn != 255
        assert (drawn[labelled] == mask[labelled]).all()
        for number in range(6):
            parts, count = connected(mask == number)
            large = [part for part in range(1, count + 1) if (parts == part).sum() >= 0.001 * mask.size]
            assert all((labelled & (parts == part)).any() for part in large), "every large part has a stroke"
            small = np.isin(parts, large, invert=True) & (parts > 0)
            assert not (labelled & small).any(), "no small part has a stroke"


def test_generated_scribbles_depend_on_name_and_seed():
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:100] = 1
    first = draw_scribbles(mask, generator("a", 0))
    assert (first == draw_scribbles(mask, generator("a", 0))).all()
    assert (first != draw_scribbles(mask, generator("b", 0))).any()
    assert (first != draw_scribbles(mask, generator("a", 1))).any()


@pytest.mark.slow
@pytest.mark.parametrize(("data", "labels"), [("voc_mini", "SegmentationClassAug"), ("camvid", "SegmentationClass")])
def test_generated_scribbles_agree_with_real_masks(shared, data, labels):
    files = sorted((shared / "data" / data / labels).glob("*.png"))[::12]
    shares = []
    for file in files:
        mask = read_label(file)
        drawn = draw_scribbles(mask, generator(file.stem, 0))
        labelled = drawn != 255
        assert (drawn[labelled] == mask[labelled]).all()
        shares.append(labelled.mean())
    assert 0.01 <= np.mean(shares) <= 0.05


def test_generate_skips_existing_files_and_takes_shards(root, tmp_path, cli):
    masks, out = root / "SegmentationClass", tmp_path / "drawn"
    common = ["generate", "--masks", masks, "--workers", "1"]
    code, output, _ = cli(scribbles.main, *common, "--out", out)
    assert code == 0 and "11 written, 0 skipped" in output and "of all pixels" in output
    whole = {path.name: path.read_bytes() for path in out.glob("*.png")}
    (out / "demo_0002.png").unlink()
    assert "1 written, 10 skipped" in cli(scribbles.main, *common, "--out", out)[1]
    for shard, count in (("1/3", 4), ("2/3", 4), ("3/3", 3)):
        output = cli(scribbles.main, *common, "--out", tmp_path / "sharded", "--shard", shard)[1]
        assert f"{count} written, 0 skipped" in output
    for folder in (out, tmp_path / "sharded"):
        assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == whole
    code, _, error = cli(scribbles.main, *common, "--out", out, "--seed", "1")
    assert code == 2 and "made with another seed" in error
    code, _, error = cli(scribbles.main, *common, "--out", root)
    assert code == 2 and "holds other files" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose xml2png, scribbles4all, generate, shrink, drop"),
        (["schrink"], "did you mean shrink?"),
        (["shrink", "--scribbles", "nowhere", "--ratio", "0.5", "--out", "x"], "no such folder"),
        (["shrink", "--scribbles", "nowhere", "--ratio", "1.5", "--out", "x"], "ratio"),
        (["drop", "--scribbles", "nowhere", "--probability", "0.5", "--out", "x", "--shard", "3/2"], "1/4"),
        (["xml2png", "--xml", "nowhere", "--out", "x", "--classes", "vocc"], "no such folder"),
    ],
)
def test_mistakes_in_scribble_commands_give_one_error_line(cli, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = cli(scribbles.main, *arguments)
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_truncated_label_does_not_stop_the_other_labels(root, tmp_path, cli):
    broken = root / "scribbles/demo_0003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    code, output, error = cli(
        scribbles.main,
        "shrink",
        "--scribbles",
        root / "scribbles",
        "--ratio",
        "0.5",
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
    )
    assert code == 1 and "10 written" in output and "failed: demo_0003" in error
    assert len(list((tmp_path / "out").glob("*.png"))) == 10


def test_clicks_become_point_labels(root, tmp_path, cli):
    clicks = {
        "demo_0000": [{"x": 20, "y": 30, "cls": 3, "rank": 1}, {"x": 21, "y": 30, "cls": "star", "rank": 0}],
        "demo_0001": [{"x": -5, "y": 500, "cls": 0}],
        "demo_0002": [{"x": 5, "y": 5, "cls": 99}],
        "missing": [],
    }
    (tmp_path / "clicks.json").write_text(json.dumps(clicks))
    arguments = ["--clicks", tmp_path / "clicks.json", "--images", root / "JPEGImages", "--workers", "1"]
    arguments += ["--classes", root / "classes.txt", "--out", tmp_path / "points"]
    code, _, error = cli(points.main, *arguments)
    assert code == 1 and "demo_0002: the class 99" in error and "missing: no image" in error
    first, second = (read_label(tmp_path / "points" / f"demo_000{number}.png") for number in (0, 1))
    assert first[30, 21] == 4 and first[30, 20] == 4 and first[30, 19] == 3, "the lower rank wins"
    assert (first != 255).sum() == 8
    assert second[-1, 0] == 0 and (second != 255).sum() == 3, "a click outside moves to the nearest pixel"
    (tmp_path / "clicks.json").write_text('{"../x": [], "demo_0001.jpg": [], "demo_0001": [{"x": 1, "y": 1, "cls": 0}]}')
    code, output, error = cli(points.main, *arguments[:-1], tmp_path / "other/points")
    assert code == 1 and "'../x' leads out of" in error and "'demo_0001' is there already" in error and "1 written" in output
    assert [path.name for path in (tmp_path / "other").rglob("*.png")] == ["demo_0001.png"]
