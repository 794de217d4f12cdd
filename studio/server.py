"""The studio's server: the page, the pictures, the strokes, the predictions and the training, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from datasets.files import read_image
from errors import UserError
from studio.export import encoded, write_zip
from studio.folder import as_json
from studio.pictures import MOST_BYTES
from studio.security import Guard
from studio.session import Listener, Studio

PAGE = Path(__file__).parent / "page"
MOST_JSON = 4_000_000  # bytes of a request's JSON
SHOWN_BY_BROWSERS = (".jpg", ".jpeg", ".png", ".webp")
THUMBNAIL = 96  # longest side in pixels


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
        return Response(encoded(picture, "JPEG"), media_type="image/jpeg")

    def strokes(request: Request) -> Response:
        return Response(as_json(studio.folder.document(picture_of(request))), media_type="application/json")

    async def change(request: Request) -> Response:
        wanted = await _json(request)
        if wanted.get("key") != studio.key:
            return JSONResponse({"error": "the strokes belong to another folder"}, 409)
        name = picture_of(request)
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
        of_network = request.query_params.get("source") == "network" and studio.rounds.state.predicted
        predict = partial(studio.prediction, source="network" if of_network else "instant")
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
