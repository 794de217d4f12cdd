"""A scripted user of the studio: labels one picture after the other with strokes drawn from its mask, and is scored on pictures
that stay unlabelled.

    python -m benchmarks.studio_user --root data/camvid --out runs/studio_user/camvid
    python -m benchmarks.studio_user --root data/camvid --out runs/studio_user/camvid_random --order random

Writes OUT/scores.jsonl: after each of `--strokes` strokes, the mIoU of the instant loop and of the network after one more round
of training. A picture is labelled to its end before the scores are taken, so the numbers are a little larger.
`--network false` leaves the training out. Prints the same lines.

    python -m benchmarks.studio_user --plot '[runs/studio_user/camvid, runs/studio_user/camvid_random]' --out plot.png

draws mIoU over strokes of finished runs.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt

from command_line import parse
from datasets import open_index
from datasets.drawing.scribbles import draw_scribbles, generator
from datasets.drawing.strokes import strokes
from datasets.files import atomic_write, read_label
from datasets.index import Index, spread_positions
from engine.metrics import ConfusionMatrix
from errors import UserError, run
from studio.export import fitting
from studio.folder import StudioFolder
from studio.session import Studio
from studio.strokes import runs_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclass
class UserConfig:
    """The data and the user's habits."""

    out: str
    """folder to write, which must not exist; with --plot, the PNG"""
    root: str = "data/demo"
    """the data set, with masks of both splits"""
    labels: str = "SegmentationClass"
    """dense masks: a folder of root, or a path"""
    train_split: str = "train"
    """pictures that may be labelled"""
    val_split: str = "val"
    """pictures that are scored"""
    pictures: PositiveInt = 60
    """number of pictures of the training split"""
    scored: PositiveInt = 30
    """number of pictures of the validation split"""
    strokes: tuple[PositiveInt, ...] = (10, 20, 40, 80, 160)
    """numbers of strokes after which to score"""
    order: Literal["next", "random"] = "next"
    """order of the pictures: the studio's suggestions, or random"""
    network: bool = True
    """also train a round at each score"""
    width: PositiveInt = 3
    """width of a stroke in pixels"""
    seed: NonNegativeInt = 0
    """random seed of the strokes and of the random order"""
    plot: tuple[str, ...] = ()
    """finished runs to draw instead"""


def main() -> None:
    """Runs the command line above. Raises UserError if OUT exists."""
    config = parse(UserConfig, __doc__)
    if config.plot:
        return draw_plot([Path(folder) for folder in config.plot], Path(config.out))
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} exists: choose another --out, or delete it")
    indices = [open_index(config.root, split, config.labels) for split in (config.train_split, config.val_split)]
    folder = StudioFolder(out / "folder", 1024)
    folder.set_classes([{"name": name, "colour": "#000000"} for name in indices[0].classes])
    masks: dict[str, np.ndarray] = {}
    own, held = (
        [add(folder, index, place, masks) for place in spread_positions(len(index), count)]
        for index, count in zip(indices, (config.pictures, config.scored), strict=True)
    )
    studio = Studio(folder)
    rng = np.random.default_rng(config.seed)
    shuffled = [own[place] for place in rng.permutation(len(own))]
    drawn = 0
    for wanted in config.strokes:
        while drawn < wanted:
            if config.order == "random":
                name = next((one for one in shuffled if not folder.has_labels(one)), None)
            else:
                suggested = studio.next(set(held))
                name = suggested and suggested[0]
            if name is None:
                break
            drawn += label(folder, name, masks[name], config)
        scores = {"strokes": drawn, "pictures": len(folder.labelled()), "instant": score(studio, held, masks, "instant")}
        if config.network:
            before = studio.rounds.state.predicted
            studio.rounds.start()
            while studio.rounds.state.predicted == before:
                time.sleep(0.5)
                if not studio.rounds.state.running and studio.rounds.state.predicted == before:
                    raise UserError(f"the training stopped: {studio.rounds.state.activity}")
            studio.rounds.pause()
            scores["network"] = score(studio, held, masks, "network")
        with open(out / "scores.jsonl", "a") as file:
            file.write(json.dumps(scores) + "\n")
        print(scores, flush=True)


def add(folder: StudioFolder, index: Index, place: int, masks: dict[str, np.ndarray]) -> str:
    """Adds a picture to the studio's folder, keeps its mask, and returns the picture's id."""
    name, _ = folder.add_picture(index.images[place].name, index.images[place].read_bytes())
    masks[name] = fitting(read_label(index.label_files[place]), folder.pictures[name].shape)
    return name


def label(folder: StudioFolder, name: str, mask: np.ndarray, config: UserConfig) -> int:
    """Draws the strokes of a picture, one at a time. Returns their number."""
    rng = generator(name, config.seed)
    drawn = 0
    for number, box, part in strokes(draw_scribbles(mask, rng, config.width)):
        whole = np.zeros(mask.shape, bool)
        whole[box] = part
        stroke = {"id": rng.bytes(16).hex(), "kind": "region", "class": number, "source": "human", "time": drawn}
        folder.change(name, [stroke | {"runs": runs_of(whole)}], [])
        drawn += 1
    return drawn


def score(studio: Studio, names: list[str], masks: dict[str, np.ndarray], source: str) -> float:
    """Returns the mIoU of predictions of "instant" or "network"."""
    matrix = ConfusionMatrix(len(studio.folder.classes))
    for name in names:
        found = studio.prediction(name, source)
        if found is None:
            return float("nan")
        matrix.update(torch.from_numpy(fitting(found.classes, masks[name].shape)).long(), torch.from_numpy(masks[name]))
    return matrix.scores(studio.folder.classes)["miou"]


def draw_plot(folders: list[Path], out: Path) -> None:
    """Draws mIoU over strokes, a curve for each run and loop."""
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        colour = None
        for loop, style in (("instant", "o-"), ("network", "s--")):
            if loop in lines[0]:
                where = [line["strokes"] for line in lines], [100 * line[loop] for line in lines]
                colour = axis.plot(*where, style, color=colour, label=f"{folder.name}, {loop}")[0].get_color()
    axis.set_xlabel("strokes")
    axis.set_ylabel("mIoU in %")
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside right upper")
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
