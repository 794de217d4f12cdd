"""The studio's folder, server and instant loop; what a stranger's request may do; training in rounds."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from datasets import open_index
from datasets.drawing.strokes import line
from datasets.files import UNLABELLED, read_label, write_label
from errors import UserError
from studio import rounds
from studio.__main__ import listen, token_of
from studio.export import fitting
from studio.folder import StudioFolder
from studio.instant import _smooth
from studio.order import TYPICAL, UNLIKE, UNSURE, next_picture
from studio.pictures import decode, free_id
from studio.server import build_app
from studio.session import Studio
from studio.strokes import checked, draw, runs_of

HOST = "127.0.0.1:8765"
TOKEN = "a-token"
WIDTH, HEIGHT = 96, 64


def stroke(number, points=((5, 5), (20, 9)), width=3, **changes):
    usual = {"id": os.urandom(16).hex(), "kind": "line", "class": number, "source": "human", "time": 1}
    return usual | {"width": width, "points": [list(point) for point in points]} | changes


def picture(seed=0, kind="PNG", **how):
    """The bytes of a picture: red and rough on the left, green and smooth on the right."""
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 0] = rng.integers(100, 255, (HEIGHT, WIDTH // 2))
    image[:, WIDTH // 2 :, 1] = 180
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    opened = StudioFolder(tmp_path / "own", 1024)
    for name in ("one.png", "two.png"):
        opened.add_picture(name, picture(len(name)))
    yield opened
    os.close(opened._lock_file)


@pytest.fixture
def studio(folder):
    return Studio(folder)


@pytest.fixture
def client(studio):
    app = build_app(studio, (HOST, "localhost:8765"), TOKEN, "studio_8765")
    with TestClient(app, base_url=f"http://{HOST}", headers={"Origin": f"http://{HOST}"}) as opened:
        assert opened.get(f"/?token={TOKEN}").status_code == 200
        yield opened


# Strokes


def test_a_stroke_is_a_line_in_the_label_and_taking_it_back_restores_the_label(folder):
    first, second = stroke(0), stroke(1, [(8, 2), (8, 40)], width=5)
    folder.change("one", [first], [])
    version = folder.change("one", [second], [])
    expected = np.full((HEIGHT, WIDTH), UNLABELLED, np.uint8)
    for one in (first, second):
        expected[line(expected.shape, np.array(one["points"], float), one["width"])] = one["class"]
    assert (read_label(folder.root / "scribbles/one.png") == expected).all()
    assert folder.change("one", [], [second["id"]]) == version + 1
    label = read_label(folder.root / "scribbles/one.png")
    assert set(np.unique(label)) == {0, UNLABELLED} and (label == folder.label("one")).all()


def test_the_order_in_which_two_pages_send_their_strokes_and_repeats_lose_nothing(folder):
    ours, theirs = stroke(0), stroke(1, [(40, 40)])
    for change in ([ours], [theirs], [ours], [theirs]):
        folder.change("one", change, [])
    assert [one["id"] for one in folder.document("one")["strokes"]] == [ours["id"], theirs["id"]]
    assert folder.document("one")["version"] == 2, "a repeat changes nothing"
    folder.change("one", [], [ours["id"], "0" * 32])
    assert [one["id"] for one in folder.document("one")["strokes"]] == [theirs["id"]]


def test_the_eraser_takes_labels_away_and_only_pictures_with_labels_are_in_the_list(folder):
    listed = folder.root / "ImageSets/Segmentation/studio.txt"
    folder.change("two", [stroke(UNLABELLED)], [])
    assert listed.read_text() == ""
    folder.change("two", [stroke(1, [(0, 0), (WIDTH, 0)], 400)], [])
    folder.change("two", [stroke(UNLABELLED, [(0, 0)], 9)], [])
    label = folder.label("two")
    assert label[0, 0] == UNLABELLED and label[0, 60] == 1
    assert listed.read_text() == "two\n"
    assert open_index(folder.root, "studio", "scribbles").classes == ("background", "object"), "any command reads the folder"


def test_runs_and_masks_are_the_same_region():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        mask = rng.random((7, 11)) < share
        label = np.full(mask.shape, UNLABELLED, np.uint8)
        if mask.any():
            draw(label, [{"kind": "region", "class": 2, "runs": runs_of(mask)}])
        assert ((label == 2) == mask).all()


def test_what_is_on_disk_is_complete_after_a_kill_between_strokes_and_label(folder):
    folder.change("one", [stroke(0)], [])
    before = (folder.root / "scribbles/one.png").read_bytes()
    folder.change("one", [stroke(1, [(50, 50)])], [])
    os.close(folder._lock_file)
    (folder.root / "scribbles/one.png").write_bytes(before)
    again = StudioFolder(folder.root, 1024)
    assert (read_label(folder.root / "scribbles/one.png") == again.label("one")).all()
    assert len(again.document("one")["strokes"]) == 2
    folder._lock_file = again._lock_file


def test_labels_of_another_program_become_strokes(tmp_path):
    label = np.full((HEIGHT, WIDTH), UNLABELLED, np.uint8)
    label[3:9, 4:30], label[20:22, :] = 0, 1
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/old.jpg").write_bytes(picture(kind="JPEG"))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write_label(tmp_path / "scribbles/old.png", label)
    opened = StudioFolder(tmp_path, 1024)
    assert (opened.label("old") == label).all() and opened.labelled() == ["old"]
    drawn = stroke(1, [(50, 50), (60, 50)])
    opened.change("old", [drawn], [])
    os.close(opened._lock_file)

    label = read_label(tmp_path / "scribbles/old.png")  # another program takes some labels away and adds others
    label[3:5], label[40:44, 7:9] = UNLABELLED, 0
    write_label(tmp_path / "scribbles/old.png", label)
    os.utime(tmp_path / "scribbles/old.png", ns=(0, 0))  # a copy of the folder may give the files any time
    again = StudioFolder(tmp_path, 1024)
    assert (again.label("old") == label).all() and (read_label(tmp_path / "scribbles/old.png") == label).all()
    assert drawn["id"] in [one["id"] for one in again.document("old")["strokes"]]
    os.close(again._lock_file)

    write_label(tmp_path / "scribbles/old.png", np.full((HEIGHT, WIDTH), 7, np.uint8))
    with pytest.raises(UserError, match="class 7 is not one of the 2 classes"):
        StudioFolder(tmp_path, 1024)


def test_loose_pictures_are_copied_once_and_bad_ones_become_notes(tmp_path):
    (tmp_path / "my photo.jpg").write_bytes(picture(kind="JPEG"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for _ in range(2):
        opened = StudioFolder(tmp_path, 1024)
        assert set(opened.pictures) == {"my_photo"} and (tmp_path / "my photo.jpg").exists()
        os.close(opened._lock_file)
    assert not opened.notes, "only the first time"


def test_an_import_that_is_cut_short_goes_on_without_copies(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"p{number}.png").write_bytes(picture(number))
    (tmp_path / "._p0.png").write_bytes(b"of macOS")
    add, added = StudioFolder.add_picture, []

    def cut_short(self, name, data):
        added.append(name)
        if len(added) == 3:
            raise KeyboardInterrupt
        return add(self, name, data)

    monkeypatch.setattr(StudioFolder, "add_picture", cut_short)
    with pytest.raises(KeyboardInterrupt):
        StudioFolder(tmp_path, 1024)
    opened = StudioFolder(tmp_path, 1024)
    assert sorted(opened.pictures) == ["p0", "p1", "p2", "p3"] and not opened.notes
    os.close(opened._lock_file)


def test_a_data_set_keeps_its_meaning(tmp_path):
    for layout, message in (("images", "plain layout"), ("JPEGImages", "classes.txt not found")):
        root = tmp_path / layout
        (root / layout).mkdir(parents=True)
        (root / layout / "a.jpg").write_bytes(picture(kind="JPEG"))
        with pytest.raises(UserError, match=message):
            StudioFolder(root, 1024)
        assert [path.name for path in root.iterdir()] == [layout], "nothing is written"
    (root / "classes.txt").write_text("".join(f"class {number}\n" for number in range(171)))  # as many as COCO-Stuff
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    opened = StudioFolder(root, 1024)
    opened.change("a", [stroke(3)], [])
    assert len(opened.colours) == 171 and (root / "ImageSets/Segmentation/train.txt").read_text() == "a\n"
    os.close(opened._lock_file)


def test_a_picture_that_lies_on_its_side_has_labels_of_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/turned.jpg").write_bytes(picture(kind="JPEG", exif=exif))
    (tmp_path / "JPEGImages/scan.tif").write_bytes(picture(kind="TIFF", exif=exif))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    opened = StudioFolder(tmp_path, 1024)
    for name in ("turned", "scan"):
        opened.change(name, [stroke(1)], [])
        assert opened.label(name).shape == opened.image(name).shape[:2] == (WIDTH, HEIGHT)
    os.close(opened._lock_file)


@pytest.mark.slow
def test_a_folder_is_open_in_one_studio_at_a_time(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "studio", folder.root, "--no_browser", "--port", "0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: another studio has {folder.root} open: close it first"]


# Pictures


def test_pictures_are_turned_upright_and_made_smaller_with_a_note():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    upright, suffix, note = decode(picture(kind="JPEG", exif=exif), "a.jpg", 1024)
    assert upright.size == (HEIGHT, WIDTH) and suffix == ".jpg" and note is None
    smaller, suffix, note = decode(picture(kind="TIFF"), "b.tif", 48)
    assert smaller.size == (48, 32) and suffix == ".png" and "b.tif: made smaller, 48 x 32" in note
    buffer = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(buffer, "TIFF")
    deep = np.asarray(decode(buffer.getvalue(), "c.tif", 1024)[0])
    assert deep.shape == (64, 64, 3) and deep.min() == 0 and deep.max() == 255, "16 bits keep their contrast"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable PNG"),
        (picture(kind="GIF"), "not a readable PNG"),
        (picture(kind="JPEG")[:400], "not a readable PNG"),
        (b"", "not a readable PNG"),
        (picture()[:16] + (60_000).to_bytes(4, "big") * 2 + picture()[24:], "not a readable PNG|over 64 megapixels"),
    ],
)
def test_other_files_are_refused_before_they_are_decoded(data, message, folder):
    with pytest.raises(UserError, match=message):
        folder.add_picture("x.png", data)
    assert set(folder.pictures) == {"one", "two"} and len(list((folder.root / "JPEGImages").iterdir())) == 2


@given(st.text(max_size=40))
def test_an_id_is_a_plain_file_name_that_is_free(name):
    taken = {"picture", "a"}
    chosen = free_id(name, taken)
    assert chosen not in taken and all(letter.isalnum() or letter in "_-" for letter in chosen) and chosen.isascii()


# The server


def test_the_token_is_kept_but_a_bad_one_is_replaced(tmp_path):
    file = tmp_path / "token"
    token = token_of(file)
    assert len(token) == 32 and token_of(file) == token and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    other = token_of(file)
    assert other != token, "others could have read it"
    file.write_text("")
    assert len(token_of(file)) == 32, "cut short by a kill"


def test_answers_do_not_wait_for_acknowledgements():
    delayed = []

    def answer(reader, writer):
        delayed.append(not writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def ask():
        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(ask())
    assert delayed == [False]


def test_only_the_studios_own_page_with_its_token_may_ask(studio):
    app = build_app(studio, (HOST,), TOKEN, "studio_8765")
    stranger = TestClient(app, base_url=f"http://{HOST}")
    assert stranger.get("/api/state").status_code == 401
    assert stranger.get("/?token=wrong").status_code == 401
    assert stranger.get("/static/app.js").status_code == 401
    assert stranger.get("/", headers={"Host": "evil.example"}).status_code == 403, "DNS rebinding"
    friend = TestClient(app, base_url=f"http://{HOST}")
    page = friend.get(f"/?token={TOKEN}")
    assert page.status_code == 200 and str(page.url) == f"http://{HOST}/", "the address bar has no token"
    assert str(friend.get(f"/?token={TOKEN}").url) == f"http://{HOST}/"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    change = {"json": {"key": studio.key, "add": [stroke(0)], "remove": []}}
    assert friend.post("/api/pictures/one/strokes", **change).status_code == 403, "no Origin"
    foreign = {"Origin": "http://evil.example"}
    assert friend.post("/api/pictures/one/strokes", headers=foreign, **change).status_code == 403
    assert friend.get("/api/state", headers=foreign).status_code == 403
    assert studio.folder.document("one")["version"] == 0
    own = {"Origin": f"http://{HOST}"}
    assert friend.post("/api/pictures/one/strokes", headers=own, **change).status_code == 200


@pytest.mark.parametrize("name", ["%2e%2e%2f%2e%2e%2fclasses.txt", "..%2f..%2fetc%2fpasswd", "one.png", "one%00", "missing"])
def test_a_picture_is_an_id_and_never_a_path(client, name):
    for path in (f"/api/pictures/{name}/image", f"/api/pictures/{name}/strokes", f"/static/{name}"):
        assert client.get(path).status_code in (404, 405)


def test_uploads_stay_in_the_folder(client, studio, tmp_path):
    before = set(tmp_path.rglob("*"))
    for name in ("../../evil.png", "/etc/evil.png", "C:\\evil.png", "one.png", ".hidden.png"):
        assert client.post("/api/pictures", files={"file": (name, picture())}).status_code == 200
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.parent for path in new} == {studio.folder.root / "JPEGImages"}
    assert sorted(path.name for path in new) == ["evil.png", "evil_2.png", "evil_3.png", "hidden.png", "one_2.png"]
    answer = client.post("/api/pictures", files={"file": ("x.svg", b"<svg/>")})
    assert answer.status_code == 400 and "not a readable PNG" in answer.json()["error"]
    forged = client.post("/api/pictures", files={"file": ("x.png", b"0")}, headers={"Content-Length": str(10**9)})
    assert forged.status_code == 400 and "over 100 MB" in forged.json()["error"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
nearly = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a" * 32, "A" * 32, "../x", ""]) | anything,
        "kind": st.sampled_from(["line", "region", "text"]),
        "class": st.integers(-2, 256) | anything,
        "source": st.sampled_from(["human", "prediction", "x"]),
        "time": st.integers() | anything,
        "width": st.integers(-1, 500) | anything,
        "points": st.lists(st.lists(st.floats() | st.integers(-50, 150), min_size=1, max_size=3), max_size=5) | anything,
        "runs": st.lists(st.integers(-5, 8000), max_size=6) | anything,
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nearly | anything)
def test_a_malformed_stroke_is_refused_or_drawn_and_never_an_error_of_the_server(client, studio, content):
    before = studio.folder.document("one")
    body = json.dumps({"key": studio.key, "add": [content], "remove": []})
    answer = client.post("/api/pictures/one/strokes", content=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert studio.folder.document("one") == before
    else:
        assert checked(content, (HEIGHT, WIDTH), 2)


@pytest.mark.parametrize("body", ["", "[", "[]", "1", '{"key": KEY, "add": 3}', '{"key": KEY, "remove": [[]]}', "[" * 100_000])
def test_a_body_that_is_no_change_is_refused(client, studio, body):
    body = body.replace("KEY", json.dumps(studio.key))
    assert client.post("/api/pictures/one/strokes", content=body).status_code == 400


def test_strokes_of_another_folder_at_the_same_address_are_not_taken(client, studio):
    answer = client.post("/api/pictures/one/strokes", json={"key": "another", "add": [stroke(0)], "remove": []})
    assert answer.status_code == 409 and studio.folder.document("one")["version"] == 0


def test_classes_are_named_coloured_and_added_but_not_deleted(client, studio):
    three = [{"name": name, "colour": "#00ff00"} for name in ("sky", "ship", "sea")]
    assert client.post("/api/classes", json={"classes": three}).status_code == 200
    assert (studio.folder.root / "classes.txt").read_text() == "sky\nship\nsea\n"
    for wrong in (
        three[:2],
        [*three[:2], three[0]],
        [{"name": "", "colour": "#000000"}] * 3,
        [{"name": "a", "colour": "x"}],
        3,
    ):
        assert client.post("/api/classes", json={"classes": wrong}).status_code == 400
    assert client.get("/api/state").json()["classes"] == three


# The instant loop


def maps_of(answer):
    """Classes and entropy at the size of the picture."""
    height, width = int(answer.headers["X-Height"]), int(answer.headers["X-Width"])
    return [fitting(one, (HEIGHT, WIDTH)) for one in np.frombuffer(answer.content, np.uint8).reshape(2, height, width)]


def test_the_certainty_does_not_depend_on_classes_without_strokes(studio):
    """Of 21 classes, two have strokes: a probability of a half is uncertain."""
    studio.folder.set_classes([{"name": f"class {n}", "colour": "#000000"} for n in range(21)])
    half = torch.full((4, 4, 2), 0.5)
    found = _smooth(half, np.zeros((8, 8), np.uint16), np.array([3, 20]))
    assert (found.classes == 3).all() and (found.entropy == 255).all() and (found.certainty == 128).all()
    studio.folder.change("one", [stroke(3, [(10, 10), (30, 50)]), stroke(20, [(70, 10), (80, 50)])], [])
    found = studio.instant.predict("one")
    assert set(np.unique(found.classes)) == {3, 20} and found.certainty.min() >= 127


def test_strokes_of_two_classes_predict_all_pictures_and_fill_accept_and_export_use_it(client, studio):
    assert client.get("/api/pictures/two/prediction?source=instant").status_code == 204
    left, right = stroke(0, [(10, 10), (30, 50)]), stroke(1, [(70, 10), (80, 50)])
    client.post("/api/pictures/one/strokes", json={"key": studio.key, "add": [left], "remove": []})
    assert client.get("/api/pictures/two/prediction?source=instant").status_code == 204, "one class alone says nothing"
    client.post("/api/pictures/one/strokes", json={"key": studio.key, "add": [right], "remove": []})
    classes, entropy = maps_of(client.get("/api/pictures/two/prediction?source=instant"))
    truth = (np.arange(WIDTH) >= WIDTH // 2).astype(int)
    assert (classes == truth).mean() > 0.9
    assert entropy[:, 40:56].mean() > entropy[:, :30].mean(), "it is least sure where the halves meet"
    assert client.get("/api/pictures/two/prediction?source=network").status_code == 204

    filled = client.post("/api/pictures/two/fill", json={"points": [[70, 30]], "class": 1, "id": "b" * 32, "time": 2}).json()
    label = studio.folder.label("two")
    assert filled["strokes"][0]["kind"] == "region" and label[30, 70] == 1 and (label == 1).sum() < 1000
    outside = client.post("/api/pictures/two/fill", json={"points": [[-9, 0]], "class": 1, "id": "c" * 32, "time": 2})
    assert outside.status_code == 400 and "outside" in outside.json()["error"]

    answer = client.post("/api/pictures/two/accept", json={"source": "instant", "ids": ["d" * 32, "e" * 32], "time": 3})
    assert answer.status_code == 200
    label = studio.folder.label("two")
    known = label != UNLABELLED
    assert 0.2 < known.mean() < 1 and (label[known] == np.broadcast_to(truth, label.shape)[known]).mean() > 0.95
    assert next(one for one in client.get("/api/state").json()["pictures"] if one["id"] == "two")["accepted"]

    packed = zipfile.ZipFile(io.BytesIO(client.get("/api/export").content))
    assert {"masks/one.png", "masks/two.png", "overlays/two.jpg", "entropy/one.png", "scribbles/one.png"} <= set(
        packed.namelist()
    )
    mask = np.asarray(Image.open(io.BytesIO(packed.read("masks/two.png"))))
    assert (mask[known] == label[known]).all(), "strokes are laid over"
    assert "sh train_seg_UR.sh" in packed.read("README.txt").decode()


def test_the_next_picture_is_typical_then_unlike_then_unsure():
    angles = {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.9, "e": 1.5, "f": 1.4}
    vectors = {name: np.array([np.cos(angle), np.sin(angle)]) for name, angle in angles.items()}
    first, reason = next_picture(vectors, set(), {}, set())
    assert (first, reason) == ("d", TYPICAL), "nearest to the mean direction"
    assert next_picture(vectors, {"d"}, {}, set()) == ("a", UNLIKE)
    assert next_picture(vectors, {"d"}, {}, {"a"}) == ("b", UNLIKE), "a was passed over"
    unsure = dict.fromkeys(vectors, 0.01) | {"f": 0.9}
    assert next_picture(vectors, {"a", "b", "c", "d"}, unsure, set()) == ("f", UNSURE), "e is farther but sure"
    assert next_picture(vectors, set(vectors), unsure, set()) is None


def test_the_server_suggests_a_picture(client):
    found = client.get("/api/next").json()
    assert found["id"] in ("one", "two") and found["reason"] == TYPICAL
    other = client.get(f"/api/next?passed={found['id']}").json()
    assert other["id"] != found["id"]


# Training

TINY = """
method: {name: cc4s}
data: {crop: 65, scale: [0.9, 1.1]}
model: {backbone: "timm:efficientnet_lite0", weights: imagenet}
train: {batch_size: 2, optimizer: adamw, lr: 1.0e-3, workers: 0, device: cpu}
"""


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_rounds_train_predict_survive_a_kill_and_go_on_after_a_restart(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "STEPS", (4, 6))
    monkeypatch.setattr(rounds, "UNCHANGED_ROUNDS", 2)
    (tmp_path / "tiny.yaml").write_text(TINY)
    configs = (str(REPOSITORY / "configs/cc4s/ur.yaml"), str(tmp_path / "tiny.yaml"))
    training = rounds.Rounds(folder, configs, lambda state: None)
    training.start()
    wait_for(lambda: "two classes" in training.state.activity)
    folder.change("one", [stroke(0, [(10, 10), (30, 50)]), stroke(1, [(70, 10), (80, 50)])], [])
    training.start()
    wait_for(lambda: training.state.activity == "training" and training.state.step >= 2)
    os.kill(training._process.pid, signal.SIGKILL)
    wait_for(lambda: training.state.predicted == 1)
    log = [json.loads(text)["step"] for text in (training.home / "1/metrics.jsonl").read_text().splitlines()]
    assert max(log) == 4
    with np.load(training.predictions / "two.npz") as arrays:
        assert arrays["classes"].shape == (HEIGHT, WIDTH) and set(np.unique(arrays["classes"])) <= {0, 1}
    wait_for(lambda: training.state.round == 2 and training.state.activity == "training")
    training.close()  # as the studio does at its end
    assert training.state.activity == "paused" and (training.home / "running").exists()

    again = Studio(folder, configs).rounds
    wait_for(lambda: again.state.predicted == 2)
    assert "--init" in json.loads((again.home / "2.json").read_text())["commands"]["training"], "from round 1"
    wait_for(lambda: not again.state.running)
    assert "draw more" in again.state.activity and not (again.home / "running").exists()
    assert [entry["round"] for entry in again.curves()][-1] == again.state.predicted
    assert again.checkpoint().is_file()

    new = again.state.predicted + 1
    folder.change("two", [stroke(0, [(10, 10), (30, 50)])], [])
    again.start()
    wait_for(lambda: again.state.predicted == new)
    again.close()
    kept = {file.relative_to(again.home).as_posix() for number in range(new + 1) for file in again.home.glob(f"{number}/*.pt")}
    assert kept == {f"{new}/best.pt"}, "a studio that trains for days does not fill the disk"
    plan = json.loads((again.home / f"{new}.json").read_text())
    assert "--init" not in plan["commands"]["training"] and plan["steps"] == 6, (
        "other pictures: from ImageNet weights, not shorter"
    )


@pytest.mark.parametrize("begun", [False, True])
def test_a_stopped_round_takes_new_pictures_unless_it_has_a_checkpoint(folder, begun):
    training = rounds.Rounds(folder, (), lambda state: None)
    folder.change("one", [stroke(0), stroke(1)], [])
    assert training._plan() == 1 == training._unfinished()
    if begun:
        (training.home / "1").mkdir()
        (training.home / "1/last.pt").touch()
    folder.change("two", [stroke(0)], [])
    assert training._unfinished() == (1 if begun else None)
    assert training._plan() == (2 if begun else 1)
    assert (training.home / f"list_{1 + begun}.txt").read_text().split() == ["one", "two"]


@pytest.mark.slow
def test_a_training_that_fails_says_why(folder, tmp_path):
    folder.change("one", [stroke(0, [(10, 10)]), stroke(1, [(70, 10)])], [])
    training = rounds.Rounds(folder, (str(tmp_path / "missing.yaml"),), lambda state: None)
    training.start()
    wait_for(lambda: not training.state.running and "failed" in training.state.activity)
    assert training.state.activity.startswith("training failed: error: ") and "missing.yaml" in training.state.activity
