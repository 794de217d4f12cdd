"""Times of the studio, measured in the page by a headless Chromium, on drawn pictures of 512 x 512 pixels.

    python -m benchmarks.studio_page

Needs requirements-dev.txt and Debian's chromium and chromium-driver. Prints the median and the 95th percentile of each
time, the time to the first prediction of the network, and the largest memory of the server.
"""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from command_line import parse
from datasets.drawing.demo import draw_picture
from engine.provenance import REPOSITORY
from errors import UserError, run

SIDE = 512
MEASURES = ("pointer to ink", "stroke saved", "prediction shown", "picture shown", "undo")


@dataclass
class PageConfig:
    """The pictures and the strokes."""

    pictures: PositiveInt = 10
    """number of pictures"""
    strokes: PositiveInt = 12
    """number of strokes"""


def main() -> None:
    """Runs the command line above. Raises UserError without a browser."""
    config = parse(PageConfig, __doc__)
    if not shutil.which("chromedriver"):
        raise UserError("no chromedriver: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as root:
        for number in range(config.pictures):
            image, _ = draw_picture(np.random.default_rng(number))
            (Path(root) / f"drawn_{number}.png").write_bytes(large(image))
        command = [sys.executable, "-m", "studio", root, "--no_browser", "--port", "0"]
        server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1360,860"):
            options.add_argument(argument)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            assert server.stdout is not None
            browser.get(server.stdout.readline().split()[-1])
            measure(browser, config)
            memory = Path(f"/proc/{server.pid}/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+)", memory)
            print(f"largest memory of the server: {int(found[1]) / 1e6:.2f} GB" if found else memory)
        finally:
            browser.quit()
            server.send_signal(signal.SIGINT)
            server.wait()


def large(image: np.ndarray) -> bytes:
    """Returns a drawn picture, made larger, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def measure(browser: webdriver.Chrome, config: PageConfig) -> None:
    """Draws, undoes, visits pictures, trains; prints the times."""
    canvas = browser.find_element("id", "canvas")
    wait(lambda: browser.find_elements("css selector", '#pictures [aria-current="true"]'))
    time.sleep(2)  # the first look at a picture
    first = entries(browser)["prediction shown"]
    rng = np.random.default_rng(0)
    for number in range(config.strokes):
        ActionChains(browser).send_keys(str(1 + number % 2)).perform()
        start, end = rng.uniform(-150, 150, 2), rng.uniform(-150, 150, 2)
        actions = ActionChains(browser, duration=16)
        for step in range(12):
            actions.move_to_element_with_offset(canvas, *map(int, start + (end - start) * step / 11))
            if step == 0:
                actions.click_and_hold()
        before = len(entries(browser)["prediction shown"])
        actions.release().perform()
        wait_for_predictions(browser, before + 1)
    again = entries(browser)["prediction shown"][len(first) + 2 :]
    for _ in range(3):
        ActionChains(browser).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
        time.sleep(0.5)
    so_far = len(entries(browser)["prediction shown"])
    for number in range(1, config.pictures):
        ActionChains(browser).send_keys(Keys.ARROW_DOWN).perform()
        wait_for_predictions(browser, so_far + number)
    times = entries(browser)
    show("pointer to ink", times["pointer to ink"])
    show("stroke saved", times["stroke saved"])
    show("prediction after a stroke, picture seen before", again)
    show("prediction of a picture on its first visit", times["prediction shown"][so_far:])
    show("picture shown", times["picture shown"])
    show("undo", times["undo"])
    begun = time.monotonic()
    ActionChains(browser).send_keys("t").perform()
    wait(lambda: "Predictions of round 1" in browser.find_element("id", "training").text, 600)
    print(f"first prediction of the network, {config.pictures} pictures: {time.monotonic() - begun:.0f} s")


def wait_for_predictions(browser: webdriver.Chrome, count: int) -> None:
    """Waits until the page has shown `count` predictions."""
    wait(lambda: len(entries(browser)["prediction shown"]) >= count)


def entries(browser: webdriver.Chrome) -> dict[str, list[float]]:
    """Returns the times in ms by name."""
    found = json.loads(browser.execute_script("return JSON.stringify(performance.getEntriesByType('measure'))"))
    return {name: [entry["duration"] for entry in found if entry["name"] == name] for name in MEASURES}


def show(name: str, times: list[float]) -> None:
    """Prints the median and the 95th percentile."""
    print(f"{name}: {np.median(times):.0f} ms, 95% {np.percentile(times, 95):.0f} ms ({len(times)} times)")


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits for a condition. Raises UserError if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise UserError("the page did not do what was expected")
        time.sleep(0.05)


if __name__ == "__main__":
    run(main)
