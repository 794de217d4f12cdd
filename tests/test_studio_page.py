"""The studio's page in a real browser: draw, undo, reload, two tabs, a killed server, training, export, keys."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from test_studio import TINY, picture, wait_for

from datasets.files import UNLABELLED, read_label

selenium = pytest.importorskip("selenium", reason="the browser tests need requirements-dev.txt")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="no browser: apt-get install chromium chromium-driver"),
]

CURRENT = '#pictures [aria-current="true"] span'  # the name of the picture that is open
CLASS_NAMES = '#classes input[type="text"]'


class Server:
    """The studio as a process of its own, on a port that stays the same."""

    def __init__(self, root, configs):
        self.root, self.configs, self.port, self.errors = root, configs, 0, root.with_suffix(".log")
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-m",
            "studio",
            self.root,
            "--no_browser",
            "--port",
            str(self.port),
            "--configs",
            self.configs,
        ]
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.address = self.process.stdout.readline().split()[-1]
        self.port = int(self.address.split(":")[2].split("/")[0])

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    for number in range(3):
        (root / f"photo_{number}.png").write_bytes(picture(number))
    (tmp_path / "tiny.yaml").write_text(TINY)
    started = Server(root, json.dumps([str(REPOSITORY / "configs/cc4s/ur.yaml"), str(tmp_path / "tiny.yaml")]))
    yield started
    started.end(signal.SIGKILL)


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield opened
    opened.quit()


def draw(browser, start, end, steps=6):
    """Draws a line between two places, as shares of the canvas from its centre."""
    canvas = browser.find_element(By.ID, "canvas")
    width, height = canvas.size["width"], canvas.size["height"]
    actions = ActionChains(browser, duration=10)
    for step in range(steps + 1):
        share = step / steps
        x, y = ((1 - share) * start[axis] + share * end[axis] for axis in (0, 1))
        actions.move_to_element_with_offset(canvas, int(x * width / 2), int(y * height / 2))
        if step == 0:
            actions.click_and_hold()
    actions.release().perform()


def texts(browser, selector):
    """What all elements say, read at once: the page may draw its lists again between two questions of selenium."""
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.value ?? element.textContent)"
    return browser.execute_script(script, selector)


def keys(browser, *pressed):
    ActionChains(browser).send_keys(*pressed).perform()


def undo(browser, redo=False):
    actions = ActionChains(browser).key_down(Keys.CONTROL)
    if redo:
        actions.key_down(Keys.SHIFT)
    actions.send_keys("z").key_up(Keys.SHIFT).key_up(Keys.CONTROL).perform()


def test_a_person_draws_trains_and_exports_and_a_killed_server_loses_nothing(server, browser):
    label_file = server.root / "scribbles/photo_0.png"
    strokes_file = server.root / "studio/strokes/photo_0.json"

    def strokes():
        return json.loads(strokes_file.read_text())["strokes"] if strokes_file.is_file() else []

    def ids():
        return [stroke["class"] for stroke in strokes()]

    browser.get(server.address)
    assert browser.current_url == f"http://127.0.0.1:{server.port}/"
    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#pictures li")) == 3, 20)
    wait_for(lambda: texts(browser, CURRENT), 20)

    # Two strokes; undo, redo, undo by keys.
    draw(browser, (-0.7, -0.5), (-0.3, 0.5))
    keys(browser, "2")
    draw(browser, (0.3, -0.5), (0.7, 0.5))
    wait_for(lambda: label_file.is_file() and set(np.unique(read_label(label_file))) == {0, 1, UNLABELLED}, 20)
    label = read_label(label_file)
    assert (label[:, : label.shape[1] // 2] != 1).all() and (label[:, label.shape[1] // 2 :] != 0).all(), "where it was drawn"
    undo(browser)
    wait_for(lambda: ids() == [0], 20)
    undo(browser, redo=True)
    wait_for(lambda: ids() == [0, 1], 20)
    wait_for(lambda: browser.execute_script("return performance.getEntriesByName('prediction shown').length") >= 2, 30)

    # Another tab sees the strokes, and draws; the first tab sees that.
    browser.switch_to.new_window("tab")
    browser.get(f"http://127.0.0.1:{server.port}/")
    wait_for(lambda: texts(browser, CURRENT), 20)
    draw(browser, (-0.1, 0.7), (-0.6, 0.7))
    wait_for(lambda: ids() == [0, 1, 0], 20)
    browser.close()
    browser.switch_to.window(browser.window_handles[0])
    draw(browser, (0.1, 0.8), (0.6, 0.8))
    wait_for(lambda: ids() == [0, 1, 0, 1], 20)

    # The server is killed; a stroke that is drawn meanwhile is saved when it is back.
    server.end(signal.SIGKILL)
    draw(browser, (0.1, -0.8), (0.6, -0.8))
    wait_for(lambda: "does not answer" in browser.find_element(By.ID, "message").text, 20)
    assert ids() == [0, 1, 0, 1]
    server.start()
    wait_for(lambda: ids() == [0, 1, 0, 1, 1], 30)
    browser.refresh()
    wait_for(lambda: texts(browser, CURRENT), 20)

    # Next picture, with a reason.
    keys(browser, "n")
    wait_for(lambda: browser.find_element(By.ID, "reason").text, 30)
    wait_for(lambda: texts(browser, CURRENT) not in ([], ["photo_0"]), 20)

    # Training; the page says that the network predicts; the person looks at its prediction and pauses it.
    said = browser.find_element(By.ID, "message")
    keys(browser, "t")
    wait_for(lambda: "The network predicts" in said.text)
    assert "Predictions of round 1" in browser.find_element(By.ID, "training").text
    assert browser.find_element(By.ID, "export").get_attribute("href").endswith("source=instant")
    browser.find_element(By.CSS_SELECTOR, '[data-source="network"]').click()
    asked = "return performance.getEntriesByType('resource').some((entry) => entry.name.endsWith('prediction?source=network'))"
    wait_for(lambda: browser.execute_script(asked), 20)
    keys(browser, "t")
    wait_for(lambda: browser.find_element(By.ID, "training").text.startswith("paused"), 60)
    wait_for(lambda: any(texts(browser, "#classes small")), 20)

    # Accept labels more pixels, of the prediction; export is a zip.
    keys(browser, "a")
    [opened] = texts(browser, CURRENT)
    wait_for(lambda: (server.root / f"studio/strokes/{opened}.json").is_file() or "not sure" in said.text, 20)
    cookie = "; ".join(f"{entry['name']}={entry['value']}" for entry in browser.get_cookies())
    link = browser.find_element(By.ID, "export").get_attribute("href")
    assert link.endswith("source=network")
    with urllib.request.urlopen(urllib.request.Request(link, headers={"Cookie": cookie})) as answer:
        content = answer.read()
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert {"masks/photo_0.png", "masks/photo_2.png", "best.pt", "best.onnx", "probabilities/photo_1.npz", "README.txt"} <= set(
        names
    )
    problems = [entry for entry in browser.get_log("browser") if entry["source"] != "network"]  # the server was away
    assert not problems, problems


def test_pictures_that_are_not_added_are_named_until_a_click(server, browser, tmp_path):
    large = Image.new("RGB", (1100, 40))
    for name in ("a.png", "c.png"):
        large.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    browser.get(server.address)
    wait_for(lambda: texts(browser, CURRENT), 20)
    browser.find_element(By.ID, "files").send_keys("\n".join(str(tmp_path / name) for name in ("a.png", "b.png", "c.png")))
    said = browser.find_element(By.ID, "message")
    wait_for(lambda: said.text.startswith("1 of 3 pictures not added: b.png: not a readable"), 20)
    said.click()
    assert not said.is_displayed() and {"a", "c"} <= set(texts(browser, "#pictures li span"))


def test_one_finger_draws_and_two_fingers_zoom(server, browser):
    strokes_file = server.root / "studio/strokes/photo_0.json"
    browser.get(server.address)
    wait_for(lambda: texts(browser, CURRENT), 20)
    box = browser.find_element(By.ID, "canvas").rect

    def touch(kind, *fingers):  # their distances from the middle, to the right
        middle, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        points = [{"x": middle + finger, "y": y, "id": number} for number, finger in enumerate(fingers)]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def draw_with_a_finger():
        touch("touchStart", -60)
        for place in range(-50, 61, 10):
            touch("touchMove", place)
        touch("touchEnd")

    def lengths():
        strokes = json.loads(strokes_file.read_text())["strokes"] if strokes_file.is_file() else []
        return [np.hypot(*np.subtract(stroke["points"][-1], stroke["points"][0])) for stroke in strokes]

    draw_with_a_finger()
    wait_for(lambda: len(lengths()) == 1, 20)
    touch("touchStart", -50)
    touch("touchStart", -50, 50)
    for place in range(60, 101, 10):
        touch("touchMove", -place, place)
    touch("touchEnd", -100)
    touch("touchMove", -20)  # the finger that is left draws nothing
    touch("touchEnd")
    draw_with_a_finger()
    wait_for(lambda: len(lengths()) == 2, 20)
    first, second = lengths()
    assert second == pytest.approx(first / 2, rel=0.1), "the picture is twice as large"


def test_the_first_visit_explains_itself_and_brings_samples(tmp_path, browser):
    (tmp_path / "empty").mkdir()
    server = Server(tmp_path / "empty", "[]")
    try:
        browser.get(server.address)
        welcome = browser.find_element(By.ID, "welcome")
        wait_for(welcome.is_displayed, 20)
        assert len(welcome.find_elements(By.TAG_NAME, "li")) == 3
        browser.find_element(By.ID, "samples").click()
        wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#pictures li")) >= 12, 30)
        assert not welcome.is_displayed()
        wait_for(lambda: texts(browser, CLASS_NAMES)[1:2] == ["disc"], 20)
        os.kill(server.process.pid, signal.SIGINT)  # Ctrl+C
        assert server.process.wait(30) in (0, 130)
        assert "Traceback" not in server.errors.read_text()
    finally:
        server.end(signal.SIGKILL)
