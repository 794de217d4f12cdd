"""An open studio: its folder, its predictions, its training, and the pages that look at it."""

import asyncio
import hashlib
import io
import json
import shlex
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict

import numpy as np
from PIL import Image

from datasets.drawing.demo import CLASSES as SAMPLE_CLASSES
from datasets.drawing.demo import draw_picture
from datasets.drawing.strokes import line
from datasets.files import UNLABELLED
from errors import UserError
from studio.export import fitting
from studio.folder import FIRST_CLASSES, SPLIT, StudioFolder
from studio.instant import InstantLoop, Prediction
from studio.order import next_picture
from studio.rounds import Rounds, State
from studio.strokes import checked, runs_of

SAMPLES = 12
SAMPLE_SIZE = (480, 384)
SAMPLE_COLOURS = ("#8a8f98", "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4")
HEARTBEAT = 15.0  # seconds between signs of life to a page
SURE = 0.9  # least probability of a pixel that "accept" labels


class Listener:
    """The events that a page has not got yet; a later event takes the place of an earlier one of its kind and picture."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], dict] = {}
        self.there = asyncio.Event()
        self.ended = False

    def add(self, event: dict) -> None:
        """Adds an event."""
        self.events[event["kind"], event.get("id", "")] = event
        self.there.set()

    async def stream(self) -> AsyncIterator[str]:
        """Yields server-sent events, and a comment now and then, so that a page that has gone is noticed."""
        yield ": welcome\n\n"
        while not self.ended:
            try:
                await asyncio.wait_for(self.there.wait(), HEARTBEAT)
            except asyncio.TimeoutError:  # Python 3.10 has two kinds
                yield ": still here\n\n"
            self.there.clear()
            while self.events:
                yield f"data: {json.dumps(self.events.pop(next(iter(self.events))))}\n\n"


class Studio:
    """An open studio. Its methods may be called from any thread."""

    def __init__(self, folder: StudioFolder, configs: tuple[str, ...] = ()):
        self.folder = folder
        # Tells a page whether the server is of the folder that its waiting strokes belong to.
        self.key = hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:12]
        self.listeners: set[Listener] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._instant: InstantLoop | None = None
        self._instant_lock = threading.Lock()
        self._vectors: dict[str, np.ndarray] = {}
        self.rounds = Rounds(folder, configs, self._tell_training)

    @property
    def instant(self) -> InstantLoop:
        """The instant loop; the first use loads its encoder."""
        with self._instant_lock:
            if self._instant is None:
                self._instant = InstantLoop(self.folder)
            return self._instant

    def tell(self, kind: str, **what: object) -> None:
        """Sends an event to all pages. Any thread may call this."""
        if self.loop:
            self.loop.call_soon_threadsafe(self._tell, {"kind": kind, **what})

    def end_streams(self) -> None:
        """Ends the event streams of all pages, so that the server can stop."""
        for listener in self.listeners:
            listener.ended = True
            listener.there.set()

    def _tell_training(self, state: State) -> None:
        self.tell("training", training=asdict(state))

    def _tell(self, event: dict) -> None:
        for listener in self.listeners:
            listener.add(event)

    def network_prediction(self, name: str) -> Prediction | None:
        """Returns the network's prediction of a picture, or None if there is none."""
        file = self.rounds.predictions / f"{name}.npz"
        if not file.is_file():
            return None
        with np.load(file) as arrays:
            if "certainty" not in arrays:  # of an earlier version; the next round predicts again
                return None
            return Prediction(arrays["classes"], arrays["entropy"], arrays["certainty"])

    def prediction(self, name: str, source: str) -> Prediction | None:
        """Returns the prediction of "instant" or "network"."""
        return self.instant.predict(name) if source == "instant" else self.network_prediction(name)

    def next(self, passed: set[str]) -> tuple[str, str] | None:
        """Returns the picture to label next and the reason."""
        names = list(self.folder.pictures)
        for name in names:
            if name not in self._vectors:
                self._vectors[name] = self.instant.whole(name)
        predictions = ((name, self.network_prediction(name)) for name in names)
        unsure = {name: float(one.entropy.mean()) / 255 for name, one in predictions if one}
        vectors = {name: self._vectors[name] for name in names}
        return next_picture(vectors, set(self.folder.labelled()), unsure, passed)

    def accept(self, name: str, source: str, ids: list[str], time: object) -> list[dict]:
        """Labels the pixels without labels of which a prediction is certain. ids: of the new strokes, one for each class.
        Returns the strokes. Raises UserError without a prediction."""
        found = self.prediction(name, source)
        if found is None:
            raise UserError("there is no prediction of this picture yet")
        shape = self.folder.pictures[name].shape
        classes, sure = fitting(found.classes, shape), fitting(found.certainty, shape) >= 255 * SURE
        with self.folder.lock:  # no stroke of another page in between
            free = sure & (self.folder.label(name) == UNLABELLED)
            numbers = np.unique(classes[free]).tolist()
            if len(ids) < len(numbers):
                raise UserError("accept needs an id for each class")
            regions = [
                {"id": one, "class": number, "time": time, "source": "prediction", "kind": "region"}
                | {"runs": runs_of(free & (classes == number))}
                for number, one in zip(numbers, ids, strict=False)
            ]
            self.folder.change(name, regions, [])
        return regions

    def fill(self, name: str, wanted: dict) -> list[dict]:
        """Labels the superpixels under a line through `wanted["points"]`, [[x, y], ...] in pixels. Returns a list of the new
        stroke. Raises UserError for a line outside the picture."""
        shape = self.folder.pictures[name].shape
        usual = {"id": "0" * 32, "class": 0, "kind": "line", "source": "human", "time": 0, "width": 1}
        stroke = checked(usual | {"points": wanted.get("points")}, shape, 1)
        superpixel = fitting(self.instant.superpixels(name), shape)
        under = line(shape, np.array(stroke["points"]), 1)
        if not under.any():
            raise UserError("the point lies outside the picture")
        runs = runs_of(np.isin(superpixel, np.unique(superpixel[under])))
        region = {"kind": "region", "source": "human", "runs": runs} | {key: wanted.get(key) for key in ("id", "class", "time")}
        self.folder.change(name, [region], [])
        return [region]

    def state(self) -> dict:
        """Returns what the page shows beside a picture."""
        folder = self.folder
        with folder.lock:
            pictures = [
                {
                    "id": picture.id,
                    "width": picture.width,
                    "height": picture.height,
                    "version": folder.documents[name]["version"],
                    "labelled": folder.has_labels(name),
                    "accepted": any(stroke["source"] == "prediction" for stroke in folder.documents[name]["strokes"]),
                }
                for name, picture in folder.pictures.items()
            ]
            classes = [{"name": name, "colour": colour} for name, colour in zip(folder.classes, folder.colours, strict=True)]
        return {
            "folder": folder.root.resolve().name,
            "key": self.key,
            "pictures": pictures,
            "classes": classes,
            "notes": folder.notes,
            "training": asdict(self.rounds.state),
            "command": self.command(),
        }

    def command(self) -> str:
        """Returns the shell command that trains on this folder elsewhere."""
        root = shlex.quote(str(self.folder.root.resolve()))
        return (
            f"DATA_ROOT={root} TRAIN_SPLIT={SPLIT} MASKS={root}/scribbles OUT=runs/studio sh train_seg_UR.sh "
            f"--config configs/cc4s/studio.yaml --data.val_split {SPLIT} --train.steps 2000 --train.val_steps 500"
        )

    def add_samples(self) -> None:
        """Draws sample pictures and names their classes."""
        if tuple(self.folder.classes) == FIRST_CLASSES:
            named = zip(SAMPLE_CLASSES, SAMPLE_COLOURS, strict=True)
            self.folder.set_classes([{"name": name, "colour": colour} for name, colour in named])
        for number in range(SAMPLES):
            image, _ = draw_picture(np.random.default_rng((7, number)))
            buffer = io.BytesIO()
            Image.fromarray(image).resize(SAMPLE_SIZE, Image.Resampling.BICUBIC).save(buffer, "PNG")
            self.folder.add_picture(f"sample_{number + 1:02d}.png", buffer.getvalue())
