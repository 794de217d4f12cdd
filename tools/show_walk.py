"""Shows the random walk on one image: its transitions from chosen pixels, and the entropy with and without the walk.

    python -m tools.show_walk --checkpoint runs/ur/best.pt --before runs/baseline/best.pt --image photo.jpg \\
        --points "[[40, 60], [90, 30]]" --out walk.png

First row of the picture: the image with its points, both predictions, both entropies. Second row: for each point, the row of
the transition matrix (the probabilities of the next position) over the darkened image. Prints the mean entropies, the number of
positions over which each row spreads (the exponential of its entropy), and the row's share in the class predicted at its point.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt

from command_line import parse
from config import InferenceConfig
from datasets.files import atomic_write, read_image
from datasets.transforms import normalise, to_tensor
from engine.checkpoint import load_model
from engine.inference import most_likely, predict_image
from engine.metrics import normalised_entropy
from engine.pictures import heat, picture_grid
from errors import UserError, run
from models.cc4s import RandomWalkNet
from ops.resizing import resize


@dataclass(kw_only=True)
class WalkConfig:
    """One image and two checkpoints."""

    checkpoint: str
    """checkpoint of a random-walk network, such as UR's"""
    before: str
    """checkpoint to compare predictions and entropy with, such as the baseline's"""
    image: str
    """image file"""
    points: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    """pixels (x, y) to start from, such as [[40, 60], [90, 30]]"""
    out: str
    """picture to write"""


def main() -> None:
    """Runs the command line above. Raises UserError for a point outside the image, or a network without a random walk."""
    config = parse(WalkConfig, __doc__)
    image = read_image(Path(config.image))
    for x, y in config.points:
        if x >= image.shape[1] or y >= image.shape[0]:
            raise UserError(f"--points: ({x}, {y}) is outside the image, {image.shape[1]}x{image.shape[0]}")
    after, before = load_model(config.checkpoint), load_model(config.before)
    if not isinstance(after.network, RandomWalkNet):
        raise UserError(f"{config.checkpoint}: not a random-walk network; give a checkpoint of UR or SS")
    with torch.inference_mode():
        probabilities = [predict_image(method, image, InferenceConfig()) for method in (before, after)]
        rows = transition_rows(after.network, normalise(to_tensor(image)), config.points)
    predictions = [most_likely(one).byte().numpy() for one in probabilities]
    entropies = [normalised_entropy(one).numpy() for one in probabilities]
    marked = image.copy()
    for point in config.points:
        cv2.circle(marked, point, 3, (255, 255, 255), -1)
        cv2.circle(marked, point, 2, (220, 30, 30), -1)
    first: list[np.ndarray | None] = [marked, *predictions, *map(heat, entropies)]
    second: list[np.ndarray | None] = [over(image, row, point) for row, point in zip(rows, config.points, strict=True)]
    columns = max(len(first), len(second))
    first += [None] * (columns - len(first))
    second += [None] * (columns - len(second))
    names = ["image, predictions before and after, entropy before and after", "where the walk goes from each point"]
    with atomic_write(Path(config.out)) as temporary:
        picture_grid([first, second], [""] * columns, names).save(temporary, "PNG")
    print(f"{config.out}: mean entropy {entropies[0].mean():.3f} before, {entropies[1].mean():.3f} after (0 to 1)")
    for (x, y), row in zip(config.points, rows, strict=True):
        spread = math.exp(-(row * np.log(row.clip(min=1e-30))).sum())
        classes = cv2.resize(predictions[1], row.shape[::-1], interpolation=cv2.INTER_NEAREST)
        same = row[classes == predictions[1][y, x]].sum()
        print(f"from ({x}, {y}): spread over {spread:.0f} of {row.size} positions, {same:.0%} in the class predicted there")


def transition_rows(network: RandomWalkNet, image: torch.Tensor, points: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Returns the rows of the transition matrix P = softmax(Q K^T) at pixels (x, y): (h, w) float32 each, sum 1 (CC4S, the
    random walk). image: (3, H, W) float32 normalised."""
    query, key = network.walk.query_key(network.features(image[None]))
    height, width = query.shape[-2:]
    rows = []
    for x, y in points:
        row = round(y * (height - 1) / max(1, image.shape[1] - 1))
        column = round(x * (width - 1) / max(1, image.shape[2] - 1))
        energy = torch.einsum("d,dn->n", query[0, :, row, column], key[0].flatten(1))
        rows.append(energy.softmax(dim=0).view(height, width).numpy())
    return rows


def over(image: np.ndarray, row: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """Draws probabilities (h, w) as light on the darkened image (H, W, 3) uint8, and marks the start point."""
    light = resize(torch.from_numpy(row / row.max())[None, None], image.shape[:2], align_corners=True)[0, 0].numpy()
    colours = 255 * matplotlib.colormaps["inferno"](light)[..., :3]
    picture = (image * 0.25 * (1 - light[..., None]) + colours * light[..., None]).astype(np.uint8)
    cv2.circle(picture, point, 3, (255, 255, 255), 1)
    return picture


if __name__ == "__main__":
    run(main)
