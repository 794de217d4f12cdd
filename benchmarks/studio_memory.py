"""Largest memory of the studio's server with many large photos: uploads them, labels one, and asks for predictions of some.

python -m benchmarks.studio_memory --pictures 200
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt
from PIL import Image

from command_line import parse
from engine.provenance import REPOSITORY
from errors import run

SIZE = (4000, 3000)  # 12 megapixels


@dataclass
class MemoryConfig:
    """The pictures."""

    pictures: PositiveInt = 200
    """number of photos"""
    predicted: PositiveInt = 40
    """number of photos to predict"""


class Client:
    """Asks the studio as its page does."""

    def __init__(self, address: str):
        self.base, _, token = address.partition("/?token=")
        port = self.base.rsplit(":", 1)[1]
        self.headers = {"Cookie": f"studio_{port}={token}", "Origin": self.base}

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """Returns the body of the answer."""
        request = urllib.request.Request(f"{self.base}/api/{path}", body, self.headers | {"Content-Type": kind})
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def upload(self, name: str, data: bytes) -> None:
        """Uploads a picture."""
        border = uuid.uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        self.ask("pictures", head.encode() + data + f"\r\n--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}")


def main() -> None:
    """Runs the command line above."""
    config = parse(MemoryConfig, __doc__)
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "studio", root, "--no_browser", "--port", "0"]
        server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        client = Client(server.stdout.readline().split()[-1])
        photo = draw_photo()
        for number in range(config.pictures):
            client.upload(f"photo_{number}.jpg", photo)
        key = json.loads(client.ask("state"))["key"]
        usual = {"kind": "line", "source": "human", "time": 0, "points": [[100, 100], [300, 500]]}
        wide, narrow = ({"id": os.urandom(16).hex(), "class": number, "width": width} for number, width in ((0, 30), (1, 9)))
        strokes = [usual | wide, usual | narrow]
        client.ask("pictures/photo_0/strokes", json.dumps({"key": key, "add": strokes, "remove": []}).encode())
        for number in range(config.predicted):
            client.ask(f"pictures/photo_{number}/prediction?source=instant")
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
        print(f"{config.pictures} photos of 12 megapixels: {int(found[1]) / 1e6:.2f} GB" if found else "no /proc")
        server.send_signal(signal.SIGINT)
        server.wait()


def draw_photo() -> bytes:
    """Returns a JPEG of 12 megapixels with details of many sizes."""
    rng = np.random.default_rng(0)
    image = sum(
        np.asarray(Image.fromarray(rng.integers(0, 64, (side * 3 // 4, side, 3), np.uint8)).resize(SIZE), np.uint8)
        for side in (8, 40, 200, 1000)
    )
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
