"""The studio's server: the page, the pictures, the strokes, the predictions and the training, over HTTP."""

import asyncio
import hashlib
import io
import json
import shlex
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from datasets.drawing.demo import CLASSES as SAMPLE_CLASSES
from datasets.drawing.demo import draw_picture
from datasets.drawing.strokes import line
from datasets.files import UNLABELLED, read_image
from errors import UserError
from studio.export import encoded, fitting, write_zip
from studio.folder import SPLIT, StudioFolder, as_json
from studio.instant import InstantLoop, Prediction
from studio.order import next_picture
from studio.pictures import MOST_BYTES
from studio.rounds import Rounds
from studio.security import Guard
from studio.strokes import checked, runs_of

PAGE = Path(__file__).parent / "page"
MOST_JSON = 4_000_000  # bytes of a request's JSON
SAMPLES = 12
SHOWN_BY_BROWSERS = (".jpg", ".jpeg", ".png", ".webp")
THUMBNAIL = 96  # longest side in pixels
HEARTBEAT = 15.0  # seconds between signs of life to a page
SURE = 64  # largest entropy (0 to 255) of a pixel that "accept" labels


class Listener:
    """The events that a page has not got yet; a later event takes the place of an earlier one of its kind and picture."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], dict] = {}
        self.there = asyncio.Event()

    def add(self, event: dict) -> None:
        """Adds an event."""
        self.events[event["kind"], event.get("id", "")] = event
        self.there.set()

    async def stream(self) -> AsyncIterator[str]:
        """Yields server-sent events, and a comment now and then, so that a page that has gone is noticed."""
        yield ": welcome\n\n"
        while True:
            try:
                await asyncio.wait_for(self.there.wait(), HEARTBEAT)
            except TimeoutError:
                yield ": still here\n\n"
            self.there.clear()
            while self.events:
                yield f"data: {json.dumps(self.events.pop(next(iter(self.events))))}\n\n"


class Studio:
    """Everything that the routes need."""

    def __init__(self, folder: StudioFolder, configs: tuple[str, ...] = ()):
        self.folder = folder
        # Tells a page whether the server is of the folder that its waiting strokes belong to.
        self.key = hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:12]
        self.listeners: set[Listener] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._instant: InstantLoop | None = None
        self._instant_lock = threading.Lock()
        self._vectors: dict[str, np.ndarray] = {}
        self.rounds = Rounds(folder, configs, lambda: self.tell("training", training=asdict(self.rounds.state)))

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

    def _tell(self, event: dict) -> None:
        for listener in self.listeners:
            listener.add(event)

    def network_prediction(self, name: str) -> Prediction | None:
        """Returns the network's prediction of a picture, or None if there is none."""
        file = self.rounds.predictions / f"{name}.npz"
        if not file.is_file():
            return None
        with np.load(file) as arrays:
            return Prediction(arrays["classes"], arrays["entropy"])

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
        classes, sure = fitting(found.classes, shape), fitting(found.entropy, shape) <= SURE
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
        names = self.folder.classes
        if names == ["background", "object"]:
            colours = ["#8a8f98", "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4"]
            self.folder.set_classes([{"name": n, "colour": c} for n, c in zip(SAMPLE_CLASSES, colours, strict=True)])
        for number in range(SAMPLES):
            image, _ = draw_picture(np.random.default_rng((7, number)))
            buffer = io.BytesIO()
            Image.fromarray(image).resize((480, 384), Image.Resampling.BICUBIC).save(buffer, "PNG")
            self.folder.add_picture(f"sample_{number + 1:02d}.png", buffer.getvalue())


def build_app(studio: Studio, hosts: tuple[str, ...], token: str, cookie: str) -> Starlette:
    """Returns the web application. hosts, token, cookie: see `Guard`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        studio.loop = asyncio.get_running_loop()
        yield
        await run_in_threadpool(studio.rounds.close)

    def picture_of(request: Request) -> str:
        name = request.path_params["name"]
        if name not in studio.folder.pictures:
            raise _MissingError(f"there is no picture {name}")
        return name

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    # Functions without `async` run in a thread of their own.
    def state(request: Request) -> Response:
        return JSONResponse(studio.state())

    async def events(request: Request) -> Response:
        listener = Listener()

        async def stream() -> AsyncIterator[str]:
            studio.listeners.add(listener)
            try:
                async for text in listener.stream():
                    yield text
            finally:
                studio.listeners.discard(listener)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def upload(request: Request) -> Response:
        _require_length(request, MOST_BYTES + 100_000)
        async with request.form(max_files=1, max_fields=1) as form:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise UserError("the request has no file")
            data = await file.read()
            name, note = await run_in_threadpool(studio.folder.add_picture, file.filename or "picture", data)
        studio.tell("pictures")
        return JSONResponse({"id": name, "note": note})

    def samples(request: Request) -> Response:
        studio.add_samples()
        studio.tell("pictures")
        return JSONResponse({})

    def image(request: Request) -> Response:
        path = studio.folder.pictures[picture_of(request)].path
        if path.suffix.lower() in SHOWN_BY_BROWSERS:
            return FileResponse(path)
        return Response(encoded(Image.fromarray(read_image(path)), "PNG"), media_type="image/png")

    def thumbnail(request: Request) -> Response:
        picture = Image.fromarray(studio.folder.image(picture_of(request)))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return Response(encoded(picture, "JPEG"), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def strokes(request: Request) -> Response:
        return Response(as_json(studio.folder.document(picture_of(request))), media_type="application/json")

    async def change(request: Request) -> Response:
        name, wanted = picture_of(request), await _json(request)
        add, remove = wanted.get("add", []), wanted.get("remove", [])
        if not isinstance(add, list) or not isinstance(remove, list) or not all(isinstance(one, str) for one in remove):
            raise UserError("add is a list of strokes, and remove is a list of ids")
        version = await run_in_threadpool(studio.folder.change, name, add, remove)
        return changed(name, version, [])

    def changed(name: str, version: int, new: list[dict]) -> Response:
        studio.tell("strokes", id=name, version=version)
        return JSONResponse({"version": version, "strokes": new})

    async def fill(request: Request) -> Response:
        name, wanted = picture_of(request), await _json(request)
        new = await run_in_threadpool(studio.fill, name, wanted)
        return changed(name, studio.folder.document(name)["version"], new)

    async def accept(request: Request) -> Response:
        name, wanted = picture_of(request), await _json(request)
        ids = wanted.get("ids")
        if not isinstance(ids, list):
            raise UserError("ids is a list")
        new = await run_in_threadpool(studio.accept, name, str(wanted.get("source")), ids, wanted.get("time"))
        return changed(name, studio.folder.document(name)["version"], new)

    def prediction(request: Request) -> Response:
        found = studio.prediction(picture_of(request), request.query_params.get("source", ""))
        if found is None:
            return Response(status_code=204)
        height, width = found.classes.shape
        sizes = {"X-Width": str(width), "X-Height": str(height)}
        return Response(found.classes.tobytes() + found.entropy.tobytes(), media_type="application/octet-stream", headers=sizes)

    async def classes(request: Request) -> Response:
        wanted = (await _json(request)).get("classes")
        if not isinstance(wanted, list) or not all(isinstance(entry, dict) for entry in wanted):
            raise UserError("classes is a list of names and colours")
        await run_in_threadpool(studio.folder.set_classes, wanted)
        studio.tell("classes")
        return JSONResponse({})

    async def training(request: Request) -> Response:
        wanted = (await _json(request)).get("run")
        if wanted not in (True, False):
            raise UserError("run is true or false")
        await run_in_threadpool(studio.rounds.start if wanted else studio.rounds.pause)
        return JSONResponse({})

    def curves(request: Request) -> Response:
        return JSONResponse(studio.rounds.curves())

    def next_one(request: Request) -> Response:
        found = studio.next(set(request.query_params.getlist("passed")))
        return JSONResponse({"id": found[0], "reason": found[1]} if found else {})

    def export(request: Request) -> Response:
        file = studio.folder.root / "studio" / "export.zip"
        predict = partial(studio.prediction, source="network" if studio.rounds.state.predicted else "instant")
        write_zip(file, studio.folder, predict, studio.rounds, studio.command())
        return FileResponse(file, media_type="application/zip", filename=f"{studio.folder.root.resolve().name}.zip")

    async def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, _MissingError) else 400)

    def route(path: str, function: Callable, method: str = "GET") -> Route:
        return Route(f"/api{path}", function, methods=[method])

    return Starlette(
        routes=[
            Route("/", page),
            Mount("/static", StaticFiles(directory=PAGE)),
            route("/state", state),
            route("/events", events),
            route("/pictures", upload, "POST"),
            route("/samples", samples, "POST"),
            route("/classes", classes, "POST"),
            route("/training", training, "POST"),
            route("/curves", curves),
            route("/next", next_one),
            route("/export", export),
            route("/pictures/{name}/image", image),
            route("/pictures/{name}/thumbnail", thumbnail),
            route("/pictures/{name}/strokes", strokes),
            route("/pictures/{name}/strokes", change, "POST"),
            route("/pictures/{name}/fill", fill, "POST"),
            route("/pictures/{name}/accept", accept, "POST"),
            route("/pictures/{name}/prediction", prediction),
        ],
        middleware=[Middleware(Guard, hosts=hosts, token=token, cookie=cookie)],
        exception_handlers={UserError: refused},
        lifespan=lifespan,
    )


class _MissingError(UserError):
    """No such picture."""


def _require_length(request: Request, most: int) -> None:
    """Raises UserError for a body that is too long or does not say how long it is."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > most:
        raise UserError(f"the request is over {most // 1_000_000} MB, or does not give its length")


async def _json(request: Request) -> dict:
    _require_length(request, MOST_JSON)
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not JSON") from error
    if not isinstance(content, dict):
        raise UserError("the request is not a JSON object")
    return content
