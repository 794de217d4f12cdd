"""Scribble studio: draw scribbles on your own pictures in the browser, train, look at the predictions, correct, train again.

    sh studio.sh                                        # data/studio
    python -m studio FOLDER --port 8765 --no_browser    # prints the address with its token

FOLDER becomes a data set that every command of the project reads. Pictures that lie in FOLDER are copied into it. Pictures can
also be dropped on the page. The studio listens to this machine alone.
"""

import os
import secrets
import signal
import socket
import threading
import webbrowser
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import FrameType

from jsonargparse.typing import NonNegativeInt, PositiveInt

from command_line import parse
from datasets.files import atomic_write
from errors import UserError, extra, run

TOKEN_LENGTH = 32


@dataclass
class StudioConfig:
    """The folder and the address."""

    folder: str
    """folder of the data set; made if missing"""
    _: KW_ONLY
    port: NonNegativeInt = 8765
    """port of the address; 0: any free port"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 lets other machines in that know the token, over an unencrypted connection"""
    no_browser: bool = False
    """do not open the page in a browser"""
    long_side: PositiveInt = 1024
    """larger pictures are made smaller, to this longest side in pixels"""
    configs: tuple[str, ...] = ()
    """YAML files of the training; unset: CC4S's UR, then SS, with configs/cc4s/studio.yaml"""


def main() -> None:
    """Runs the command line above until Ctrl+C. Raises UserError if the folder or the port cannot be used."""
    config = parse(StudioConfig, __doc__, positional=True)
    uvicorn = extra("uvicorn")
    extra("python_multipart")
    from studio.folder import StudioFolder  # these load torch, and the packages above
    from studio.server import build_app
    from studio.session import Studio

    listening = listen(config.host, config.port)
    port = listening.getsockname()[1]
    studio = Studio(StudioFolder(Path(config.folder), config.long_side), config.configs)
    # A token of the folder's own: a page that is open goes on after the studio was started again.
    token = token_of(Path(config.folder) / "studio" / "token")
    names = ["127.0.0.1", "localhost"]
    if config.host not in names:
        names += [config.host.lower(), outward_address(), socket.gethostname().lower()]
    hosts = [f"{name}:{port}" for name in names] + (names if port == 80 else [])  # browsers leave out the usual port
    app = build_app(studio, tuple(hosts), token, f"studio_{port}")
    shown = outward_address() if config.host == "0.0.0.0" else config.host
    address = f"http://{shown}:{port}/?token={token}"
    print(f"studio of {config.folder}: {address}\nCtrl+C ends it; everything is saved", flush=True)
    # In a thread: a browser of the terminal would wait for a server that has not started.
    if not config.no_browser and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False))
    stop = server.handle_exit

    def end(number: int, frame: FrameType | None) -> None:
        if studio.loop:
            studio.loop.call_soon_threadsafe(studio.end_streams)
        stop(number, frame)

    server.handle_exit = end
    server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises UserError if the address is taken or unknown."""
    # asyncio sets TCP_NODELAY only if the protocol is named. Without TCP_NODELAY, answers wait 40 ms for an acknowledgement.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}: choose another --port, or 0 for any") from error
    return listening


def outward_address() -> str:
    """Returns the address of this machine in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def token_of(file: Path) -> str:
    """Returns the token in a file that only this user can read. Writes a new one if there is none, if the file is cut short, or
    if others could have read it."""
    there = file.stat() if file.is_file() else None
    if there and there.st_uid == os.getuid() and not there.st_mode & 0o077 and len(file.read_text()) == TOKEN_LENGTH:
        return file.read_text()
    token = secrets.token_urlsafe(TOKEN_LENGTH * 3 // 4)
    with atomic_write(file) as temporary, os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
        opened.write(token)
    return token


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the server has its own handler
    run(main)
