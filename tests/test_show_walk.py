"""tools.show_walk draws the transition rows of the walk."""

import re

import torch
from conftest import HEIGHT, WIDTH
from PIL import Image

from engine.checkpoint import load_model
from tools import show_walk


def test_transition_rows_are_rows_of_the_dense_matrix(checkpoints):
    network = load_model(checkpoints / "seven.pt").network
    image = torch.randn(3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        query, key = network.walk.query_key(network.features(image[None]))
        transition = torch.einsum("bdm,bdn->bmn", query.flatten(2), key.flatten(2)).softmax(dim=2)[0]
        rows = show_walk.transition_rows(network, image, ((0, 0), (96, 64), (48, 16)))
    height, width = query.shape[-2:]
    assert (height, width) == (9, 13)
    for row, position in zip(rows, (0, height * width - 1, 2 * width + 6), strict=True):
        torch.testing.assert_close(torch.from_numpy(row).flatten(), transition[position], rtol=1e-4, atol=1e-6)


def test_show_walk_draws_a_picture_and_refuses_points_outside(checkpoints, tiny, tmp_path, cli):
    image = tiny / "JPEGImages/demo_0000.jpg"
    common = ["--checkpoint", checkpoints / "seven.pt", "--before", checkpoints / "seven.pt", "--image", image]
    code, output, error = cli(show_walk.main, *common, "--points", "[[20, 30], [90, 70]]", "--out", tmp_path / "walk.png")
    assert code == 0, error
    before, after = re.search(r"mean entropy ([\d.]+) before, ([\d.]+) after", output).groups()
    assert before == after and 0 < float(before) <= 1
    spreads = re.findall(r"spread over (\d+) of (\d+) positions, (\d+)%", output)
    assert len(spreads) == 2 and all(1 <= int(a) <= int(b) and 0 <= int(c) <= 100 for a, b, c in spreads)
    with Image.open(tmp_path / "walk.png") as picture:
        assert picture.width > 5 * 190
    code, _, error = cli(show_walk.main, *common, "--points", "[[20, 300]]", "--out", tmp_path / "other.png")
    assert code == 2 and f"outside the image, {WIDTH}x{HEIGHT}" in error and not (tmp_path / "other.png").exists()
