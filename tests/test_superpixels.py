"""The preparation of superpixels and of the colour constraint's graph."""

import h5py
import numpy as np
import pytest
from conftest import HEIGHT, REPOSITORY, WIDTH
from PIL import Image
from test_chain import SMALL

import train
from datasets import open_index
from datasets.files import read_image, read_label
from datasets.segmentation import SegmentationDataset, Superpixels
from tools import superpixels


def test_superpixel_files_are_complete_and_existing_ones_are_kept(root, cli):
    assert cli(superpixels.main, root, "--segments", "60", "--workers", "1")[0] == 0
    folder = root / "superpixels"
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert len(first) == 3 * 8 + 1, "three per image, and superpixels.json"
    for path in (folder / "map").iterdir():
        ids = np.unique(np.asarray(Image.open(path)))
        assert (ids == np.arange(len(ids))).all() and 20 < len(ids) < 120
        superpixel = np.asarray(Image.open(path))
        around = [np.roll(np.pad(superpixel, 1, mode="edge"), shift, axis)[1:-1, 1:-1] for shift in (-1, 1) for axis in (0, 1)]
        boundary = np.any([superpixel != other for other in around], axis=0)
        assert (np.asarray(Image.open(folder / f"boundary/{path.name}")) == 255 * boundary).all(), "both sides of each boundary"
        edges, weights = superpixels.similarities(read_image(root / f"JPEGImages/{path.stem}.jpg"), superpixel)
        with np.load(folder / f"edges/{path.stem}.npz") as written:
            assert (written["edges"] == edges).all() and (written["weights"] == weights).all()
    (folder / "edges/demo_0003.npz").unlink()
    code, output, _ = cli(superpixels.main, root, "--segments", "60", "--workers", "1")
    assert code == 0 and "1 written" in output and "7 skipped" in output
    assert {path for path in folder.rglob("*.*") if path.stat().st_mtime_ns != first[path]} == {
        folder / kind / f"demo_0003.{suffix}" for kind, suffix in (("map", "png"), ("boundary", "png"), ("edges", "npz"))
    }


def test_a_damaged_edge_list_is_found_before_training(root, tmp_path, cli):
    cli(superpixels.main, root, "--segments", "60", "--workers", "1")
    (root / "superpixels/edges/demo_0004.npz").write_bytes(b"damaged")
    config = ["--config", REPOSITORY / "configs/cc4s/ur.yaml", *SMALL, "--method.colour", "1"]
    code, _, error = cli(train.main, *config, "--data.root", root, "--out", tmp_path / "run")
    assert code == 2 and "demo_0004.npz: not a readable edge list" in error
    assert not (tmp_path / "run").exists()


def released_graph(folder, name, superpixel, weights):
    """Writes the files of CC4S's scribblesup.m for an image (MATLAB -v7.3: HDF5, columns first, ids from 1)."""
    for part, arrays in (
        ("spiex", {"var1": superpixel + 1.0}),
        ("Laplace", {"W": weights, "L": np.diag(weights.sum(0)) - weights}),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"{part}/{name}.mat", "w") as file:
            for variable, array in arrays.items():
                file[variable] = array.T


def test_the_released_matlab_graphs_are_converted(root, tmp_path, cli):
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    superpixel = np.kron(np.arange(6).reshape(2, 3), np.ones((HEIGHT // 2, WIDTH // 3))).astype(np.int64)
    weights = np.zeros((6, 6))
    weights[[0, 1, 1, 2], [1, 0, 2, 1]] = 0.8, 0.4, 0.2, 0.8  # not symmetric: W is scaled per column, to 0.8
    for name in names:
        released_graph(tmp_path / "cc4s", name, superpixel, weights)
    command = [root, "--released", tmp_path / "cc4s", "--workers", "1"]
    assert cli(superpixels.main, *command)[0] == 0
    read = SegmentationDataset(open_index(root, "train", "scribbles"), superpixels=Superpixels(root / "superpixels"))
    assert (read.read(0)[1]["superpixel"] == superpixel).all()
    edges, edge_weights = read.read_graph(0)
    assert edges.tolist() == [[0, 1], [1, 2]] and edge_weights == pytest.approx([0.6, 0.5])
    boundary = read_label(root / f"superpixels/boundary/{names[0]}.png") > 0
    assert boundary.any() and not boundary[:2, :2].any()
    code, printed, error = cli(superpixels.main, root, "--workers", "1")  # the call of the stage scripts
    assert code == 0 and "8 skipped" in printed, error

    (root / f"superpixels/map/{names[0]}.png").unlink()
    for damage, message in (
        (lambda: released_graph(tmp_path / "cc4s", names[0], superpixel[:-1], weights), "of another size than"),
        (lambda: released_graph(tmp_path / "cc4s", names[0], superpixel, weights[:5, :5]), "6 x 6 weights"),
        (lambda: (tmp_path / f"cc4s/spiex/{names[0]}.mat").write_bytes(b"damaged"), "not a readable MATLAB 7.3 file"),
        (lambda: (tmp_path / f"cc4s/spiex/{names[0]}.mat").unlink(), "not found"),
    ):
        damage()
        code, _, error = cli(superpixels.main, *command)
        assert code == 1 and f"{names[0]}.mat" in error and message in error, error


def naive_similarities(image, superpixel):
    """The edges and weights of CC4S's formula, by loops over pixels and pairs."""
    count = int(superpixel.max()) + 1
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    colour, gradient, area = np.zeros((count, 3, 25)), np.zeros((count, 2, 10)), np.zeros(count)
    slopes = np.gradient(grey, axis=1), np.gradient(grey, axis=0)
    pairs = set()
    for y, x in np.ndindex(superpixel.shape):
        a = superpixel[y, x]
        area[a] += 1
        for channel in range(3):
            colour[a, channel, min(int(image[y, x, channel] / 10.2), 24)] += 1
        for direction in range(2):
            share = (slopes[direction][y, x] - np.min(slopes)) / np.ptp(slopes)
            gradient[a, direction, min(int(share * 10), 9)] += 1
        for b in {superpixel[y, min(x + 1, superpixel.shape[1] - 1)], superpixel[min(y + 1, superpixel.shape[0] - 1), x]}:
            if a != b:
                pairs.add((min(a, b), max(a, b)))
    pairs = sorted(pairs)
    colour, gradient = colour / area[:, None, None], gradient / area[:, None, None]
    w = np.array([
        np.exp(-5 * (np.linalg.norm(colour[a] - colour[b]) / 25 + np.linalg.norm(gradient[a] - gradient[b]) / 100))
        for a, b in pairs
    ])  # fmt: skip
    w -= 0.8 * w.min()
    return pairs, 0.8 * w / w.max()


def test_bad_images_do_not_stop_the_superpixels_of_the_others(root, tmp_path, cli):
    names = root / "ImageSets/Segmentation/train.txt"
    names.write_text(names.read_text() + "../secret\nmissing\n")
    (root / "JPEGImages/demo_0001.jpg").write_bytes(b"")
    truncated = root / "JPEGImages/demo_0002.jpg"
    truncated.write_bytes(truncated.read_bytes()[:100])
    code, output, error = cli(superpixels.main, root, "--segments", "60", "--workers", "1")
    assert code == 1 and "6 written, 0 skipped, 4 failed" in output
    failed = [line for line in error.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 4
    for name in (
        "'../secret' leads out",
        "missing: no image",
        "demo_0001.jpg: not a readable",
        "demo_0002.jpg: not a readable",
    ):
        assert any(name in line for line in failed), error
    assert not (tmp_path / "secret.png").exists() and len(list((root / "superpixels/map").iterdir())) == 6


def test_edge_weights_equal_the_formula_by_loops():
    rng = np.random.default_rng(0)
    superpixel = np.kron(rng.permutation(12).reshape(3, 4), np.ones((7, 6))).astype(np.uint16)
    image = np.repeat((rng.integers(0, 200, (21, 24, 1)) + 3 * superpixel[..., None]).astype(np.uint8), 3, axis=2)
    edges, weights = superpixels.similarities(image, superpixel)
    pairs, expected = naive_similarities(image, superpixel)
    assert edges.tolist() == [list(pair) for pair in pairs]
    assert len(edges) == 3 * 3 + 2 * 4
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert weights.max() == pytest.approx(0.8) and weights.min() > 0


def test_edges_between_similar_colours_weigh_more():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, :10], image[:, 10:20], image[:, 20:] = 100, 101, 250
    superpixel = np.repeat(np.arange(3), 10)[None].repeat(10, axis=0).astype(np.uint16)
    edges, weights = superpixels.similarities(image, superpixel)
    assert edges.tolist() == [[0, 1], [1, 2]]
    assert weights[0] > weights[1]


def test_weak_gradients_of_a_faint_image_change_the_weights():
    """Flat and striped superpixels of equal mean. If bins covered [-255, 255], all gradients would fall into one bin."""
    image = np.full((12, 24, 3), 104, np.uint8)
    image[:, 12:] += np.tile(np.array([0, 0, 4, 4], np.uint8), 3)[None, :, None]
    image[:, 12:] -= 2
    thirds = (np.arange(24) // 6).astype(np.uint16)[None].repeat(12, axis=0)  # flat, flat, striped, striped
    edges, weights = superpixels.similarities(image, thirds)
    assert edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert weights[0] == weights[2] and weights[1] < 0.9 * weights[0]


def test_an_image_without_gradient_has_equal_weights():
    superpixel = np.repeat(np.arange(3), 4)[None].repeat(4, axis=0).astype(np.uint16)
    _, weights = superpixels.similarities(np.full((4, 12, 3), 7, np.uint8), superpixel)
    assert weights == pytest.approx([0.8, 0.8])


def test_one_superpixel_has_no_edge():
    edges, weights = superpixels.similarities(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16))
    assert edges.shape == (0, 2) and weights.shape == (0,)
