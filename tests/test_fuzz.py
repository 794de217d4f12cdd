"""Hostile and broken input: each reader quickly returns a value or raises one UserError. It runs and writes nothing.

Hypothesis draws more than 1000 cases from a fixed seed.
"""

import json
import os
import pickle
import struct
import zipfile
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import HEIGHT, WIDTH
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from command_line import parse
from config import Config
from datasets import open_index
from datasets.files import atomic_write, read_edges, read_image, read_label, read_matlab, read_matlab73, read_superpixel
from datasets.index import read_names, read_tags
from datasets.official.scribblesup import read_annotation
from datasets.segmentation import SegmentationDataset, read_fitting_label
from engine.checkpoint import load_model
from engine.distributed import items_of_shard
from errors import UserError
from methods import SETTINGS

CASES = settings(
    max_examples=70, deadline=10_000, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def one_line_or_value(read, *arguments, **named):
    """Calls `read`. Returns the value, or None for a UserError. The error must have one line."""
    try:
        return read(*arguments, **named)
    except UserError as error:
        assert str(error) and "Traceback" not in str(error) and "\n" not in str(error), str(error)
        return None


def encoded(suffix, image):
    return bytes(cv2.imencode(suffix, image)[1])


def png(width, height, mode=2, depth=8, data=b""):
    """A PNG whose header may contradict its data."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def archive(**arrays):
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 5, (12, 15), np.uint8)
WELL_FORMED = [
    encoded(".png", PIXELS), encoded(".jpg", PIXELS), encoded(".png", PIXELS.astype(np.uint16)), encoded(".bmp", PIXELS),
    encoded(".png", np.dstack([PIXELS] * 4)), encoded(".tiff", PIXELS.astype(np.float32)),
    archive(edges=np.array([[0, 1]]), weights=np.array([0.5])),
]  # fmt: skip


@st.composite
def damaged(draw):
    """A file of a known format that is whole, cut, changed or doubled; or an empty file, or random bytes."""
    content = bytearray(draw(st.sampled_from(WELL_FORMED)))
    kind = draw(st.sampled_from(["cut", "change", "noise", "empty", "whole", "twice"]))
    if kind == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif kind == "change":
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    elif kind == "noise":
        content = draw(st.binary(max_size=200))
    elif kind == "empty":
        content = b""
    elif kind == "twice":
        content = content + content
    return bytes(content)


@CASES
@given(damaged())
def test_a_damaged_image_gives_an_array_or_one_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    image = one_line_or_value(read_image, tmp_path / "file")
    assert image is None or (image.dtype == np.uint8 and image.ndim == 3)


@CASES
@given(damaged())
def test_a_damaged_label_gives_valid_ids_or_one_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    label = one_line_or_value(read_label, tmp_path / "file")
    assert label is None or (label.dtype == np.uint8 and label.ndim == 2)
    fitting = one_line_or_value(read_fitting_label, tmp_path / "file", np.zeros((12, 15, 3), np.uint8), 3)
    assert fitting is None or (fitting.shape == (12, 15) and set(np.unique(fitting)) <= {0, 1, 2, 255})


@CASES
@given(damaged())
def test_a_damaged_superpixel_file_gives_a_value_or_one_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    superpixel = one_line_or_value(read_superpixel, tmp_path / "file")
    assert superpixel is None or superpixel.dtype == np.uint16
    edges = one_line_or_value(read_edges, tmp_path / "file")
    assert edges is None or edges[0].shape == (len(edges[1]), 2)
    one_line_or_value(read_matlab, tmp_path / "file", lambda content: content["edges"])
    one_line_or_value(read_matlab73, tmp_path / "file", "edges")


@CASES
@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40) | st.just(2), min_size=2, max_size=2), max_size=4),
    st.lists(st.floats() | st.just(0.5), max_size=4),
)
def test_an_edge_list_has_valid_ids_and_finite_weights_or_is_refused(tmp_path, edges, weights):
    (tmp_path / "e.npz").write_bytes(archive(edges=np.array(edges, dtype=np.int64).reshape(-1, 2), weights=np.array(weights)))
    read = one_line_or_value(read_edges, tmp_path / "e.npz")
    if read is not None:
        assert len(read[0]) == len(read[1])
        assert (read[0] >= 0).all() and (read[0] < 65535).all() and np.isfinite(read[1]).all() and (read[1] >= 0).all()


@CASES
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from([0, 2, 3, 6]), st.sampled_from([1, 8, 16]))
def test_headers_with_absurd_dimensions_give_no_huge_array(tmp_path, width, height, mode, depth):
    (tmp_path / "file").write_bytes(png(width, height, mode, depth))
    for read in (read_image, read_label, read_superpixel):
        got = one_line_or_value(read, tmp_path / "file")
        assert got is None or got.size < 2**30


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, data=bytes(1000)))
    for read in (read_image, read_label, read_superpixel):
        with pytest.raises(UserError, match="decompression bomb"):
            read(tmp_path / "bomb.png")


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@CASES
@given(st.lists(TEXT | st.sampled_from(["../../etc/passwd", "/etc/passwd", "a/../../b", "a\0b", "good", ".."]), max_size=5))
def test_names_in_a_list_stay_inside_the_folder(tmp_path, names):
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    for name in one_line_or_value(read_names, tmp_path / "list.txt") or []:
        assert (tmp_path / "images" / name).resolve().is_relative_to((tmp_path / "images").resolve())


@CASES
@given(st.binary(max_size=60))
def test_lists_and_tags_of_any_bytes_give_a_value_or_one_error(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    names = one_line_or_value(read_names, tmp_path / "list.txt")
    assert names is None or (names and all(names))
    (tmp_path / "tags.json").write_bytes(content)
    tags = one_line_or_value(read_tags, tmp_path, ("a",), ("background", "cat"))
    assert tags is None or tags.shape == (1, 1)


KEY = st.sampled_from(["a", "b", "data", "train", "steps", "crop", "root", "method"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=8,
)


@CASES
@given(JSON)
def test_tags_of_any_json_give_a_value_or_one_error(tmp_path, content):
    (tmp_path / "tags.json").write_text(json.dumps(content))
    tags = one_line_or_value(read_tags, tmp_path, ("a", "b"), ("background", "cat"))
    assert tags is None or tags.shape == (2, 1)


@pytest.mark.slow
@CASES
@given(JSON)
def test_a_config_file_of_any_yaml_gives_a_config_or_one_error(tmp_path, content):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = one_line_or_value(parse, Config, "", ["--config", str(tmp_path / "config.yaml")], methods=SETTINGS)
    assert config is None or (isinstance(config, Config) and config.data.crop > 0)


FLAGS = [
    "--data.crop", "--train.lr", "--train.steps", "--train.batch_size", "--data.scale", "--method.name", "--method.shrink",
    "--train.step", "--nothing", "--data",
]  # fmt: skip


@pytest.mark.slow
@CASES
@given(st.sampled_from(FLAGS), TEXT | st.sampled_from(["-1", "nan", "1e400", "[2,1]", "0", "1", "7", "0.5"]))
@example("--train.lr", "1e400")
@example("--data.scale", "[2,1]")
@example("--train.steps", "7")
def test_flags_of_any_value_give_a_valid_config_or_one_error(flag, value):
    config = one_line_or_value(parse, Config, "", [f"{flag}={value}"], methods=SETTINGS)
    assert config is not None or (flag, value) != ("--train.steps", "7")
    if config is not None:
        assert config.data.crop > 0 and config.train.lr > 0 and np.isfinite(config.train.lr) and config.train.batch_size > 0


NUMBER = st.integers(-(10**9), 10**9) | st.floats() | st.sampled_from(["", "x", "1e9", "&#0;", "<b/>", "12", "15"])


@CASES
@given(
    NUMBER, NUMBER, st.sampled_from(["cat", "plane", "dragon", "", "<cat/>"]), st.lists(st.tuples(NUMBER, NUMBER), max_size=4)
)
def test_annotations_of_any_numbers_give_valid_ids_or_one_error(tmp_path, width, height, tag, points):
    drawn = "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in points)
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    (tmp_path / "a.xml").write_text(f"<annotation>{size}<polygon><tag>{tag}</tag>{drawn}</polygon></annotation>")
    label = one_line_or_value(read_annotation, tmp_path / "a.xml", ("background", "aeroplane", "cat"), 3)
    assert label is None or set(np.unique(label)) <= {0, 1, 2, 255}


@CASES
@given(st.binary(max_size=300))
def test_annotations_of_any_bytes_are_refused(tmp_path, content):
    (tmp_path / "a.xml").write_bytes(content)
    assert one_line_or_value(read_annotation, tmp_path / "a.xml", ("background", "cat"), 3) is None, "these bytes have no size"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder, how):
        self.folder, self.how = folder, how

    def __reduce__(self):
        return {
            "system": (os.system, (f"mkdir {self.folder}",)),
            "mkdir": (os.mkdir, (str(self.folder),)),
            "eval": (eval, (f"__import__('os').mkdir({str(self.folder)!r})",)),
            "exec": (exec, (f"import os; os.mkdir({str(self.folder)!r})",)),
        }[self.how]


@CASES
@given(
    st.sampled_from(["system", "mkdir", "eval", "exec"]), st.sampled_from(["zip", "legacy", "plain"]),
    st.sampled_from(["config", "classes", "method", "optimizer"]), st.integers(0, 5),
)  # fmt: skip
def test_loading_a_checkpoint_never_runs_code(tmp_path, how, form, key, protocol):
    content = {"config": {}, "classes": ["a"], "method": {}} | {key: Evil(tmp_path / "made", how)}
    if form == "plain":
        (tmp_path / "x.pt").write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=form == "zip", pickle_protocol=max(2, protocol))
    assert one_line_or_value(load_model, tmp_path / "x.pt") is None
    assert not (tmp_path / "made").exists()


@CASES
@given(st.data())
def test_cut_or_changed_checkpoints_are_refused(tmp_path, data):
    torch.save(
        {"config": {"method": {}, "model": {}}, "classes": ["a", "b"], "method": {"w": torch.ones(3)}}, tmp_path / "x.pt"
    )
    content = bytearray((tmp_path / "x.pt").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.pt").write_bytes(content)
    assert one_line_or_value(load_model, tmp_path / "x.pt") is None, "the weights fit no network"


@CASES
@given(st.text(max_size=8) | st.from_regex(r"-?[0-9]{1,3}/-?[0-9]{1,3}", fullmatch=True))
def test_any_shard_text_gives_valid_items_or_one_error(text):
    items = one_line_or_value(items_of_shard, list(range(10)), text)
    assert items is None or set(items) <= set(range(10))


def test_an_archive_with_other_content_is_refused_as_edge_list(tmp_path):
    with zipfile.ZipFile(tmp_path / "e.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("edges.npy", b"\x93NUMPY\x01\x00" + bytes(10_000_000))
    with pytest.raises(UserError, match="not a readable edge list"):
        read_edges(tmp_path / "e.npz")


def test_links_are_read_but_never_written_through(root, tmp_path):
    """A label folder may be a link. Written files stay in the output folder, even if a link points elsewhere."""
    (root / "linked").symlink_to(root / "scribbles")
    assert len(SegmentationDataset(open_index(root, "train", "linked"))) == 8
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").symlink_to(tmp_path / "outside/file")
    with atomic_write(tmp_path / "out/file") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "out/file").is_symlink() and list((tmp_path / "outside").iterdir()) == []


def test_the_error_for_one_broken_label_names_its_file(root):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "scribbles/demo_0003.png")
    dataset = SegmentationDataset(open_index(root, "train", "scribbles"))
    read = [one_line_or_value(dataset.read, position) for position in range(len(dataset))]
    assert [item is None for item in read].count(True) == 1
    with pytest.raises(UserError, match=r"demo_0003\.png: a label is a palette or grey PNG"):
        dataset.read(dataset.index.names.index("demo_0003"))
