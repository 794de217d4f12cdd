"""The demo data: images that the project draws, with dense masks and scribbles, in VOC's layout.

Objects of six kinds overlap on patterned ground. Each kind has its own outline, pattern and range of hues. Neighbouring ranges
overlap, and the ground has all hues, so colour helps but is not enough. The light varies across the image, and there is noise.
The scribbles are those of `datasets.drawing.scribbles`.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from skimage.color import hsv2rgb

from datasets.drawing.scribbles import draw_scribbles
from datasets.files import write_label

DEMO_ROOT = Path("data/demo")
WIDTH, HEIGHT = 240, 192  # tests draw smaller images
TRAIN, VAL = 160, 40
OBJECTS = (2, 4)  # least and largest number of objects in an image
CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
SUPERSAMPLING = 4  # outlines are drawn this many times larger and then reduced, so that rotated edges are smooth


def draw_if_missing(root: str | Path) -> None:
    """Draws the demo data if `root` is `DEMO_ROOT` and does not exist."""
    if Path(root) == DEMO_ROOT and not DEMO_ROOT.exists():
        print(f"drawing the demo data into {DEMO_ROOT}")
        draw_demo(DEMO_ROOT)


def draw_demo(root: Path, train: int = TRAIN, val: int = VAL, seed: int = 0, objects: tuple[int, int] = OBJECTS) -> None:
    """Draws the data set: JPEGImages, SegmentationClass (dense masks), scribbles, two splits and classes.txt. `root` appears
    only when everything is drawn. The same seed draws the same data. objects: as for `draw_picture`."""
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    partial.chmod(0o755)
    try:
        for folder in ("JPEGImages", "SegmentationClass", "scribbles", "ImageSets/Segmentation"):
            (partial / folder).mkdir(parents=True)
        names = [f"demo_{number:04d}" for number in range(train + val)]
        for number, name in enumerate(names):
            rng = np.random.default_rng((seed, number))
            image, mask = draw_picture(rng, objects)
            cv2.imwrite(str(partial / "JPEGImages" / f"{name}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            write_label(partial / "SegmentationClass" / f"{name}.png", mask)
            write_label(partial / "scribbles" / f"{name}.png", draw_scribbles(mask, rng))
        for split, members in (("train", names[:train]), ("val", names[train:])):
            (partial / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(members) + "\n")
        (partial / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        try:
            partial.rename(root)
        except OSError:
            if not root.exists():
                raise  # otherwise another process has drawn the same data
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # does nothing after the rename


def draw_picture(rng: np.random.Generator, objects: tuple[int, int] = OBJECTS) -> tuple[np.ndarray, np.ndarray]:
    """Draws an image (HEIGHT, WIDTH, 3) uint8 RGB, and its mask (HEIGHT, WIDTH) uint8. objects: their least and largest
    number."""
    image = _paint(_ground(rng), rng.uniform(0, 1), 0.5, rng)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    unit = HEIGHT / 192
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        kind = int(rng.integers(1, len(CLASSES)))
        centre = rng.uniform((18 * unit, 18 * unit), (WIDTH - 18 * unit, HEIGHT - 18 * unit))
        radius = rng.uniform(32 * unit, 54 * unit)
        angle = rng.uniform(0, 2 * np.pi)
        cover = _cover(CLASSES[kind], centre, radius, angle)
        shading = 1 + 0.25 * _ramp(rng)  # each object has its own shading
        hue = (kind - 1) / 6 + rng.uniform(-0.1, 0.1)
        painted = _paint(PATTERNS[CLASSES[kind]](centre, rng), hue, 0.9, rng) * shading[..., None]
        image = image + cover[..., None] * (painted - image)
        mask[cover >= 0.5] = kind
    light = 1 + 0.35 * _ramp(rng)
    image = image * light[..., None] + rng.normal(0, 0.03, image.shape)
    return (255 * image).round().clip(0, 255).astype(np.uint8), mask


def _grid() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    return columns, rows


def _rotated(centre: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid()
    x, y = x - centre[0], y - centre[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """A linear ramp of random direction over the image, in [-1, 1]."""
    x, _ = _rotated(np.array([WIDTH / 2, HEIGHT / 2]), rng.uniform(0, 2 * np.pi))
    return x / np.abs(x).max()


def _wave(phase: np.ndarray) -> np.ndarray:
    """A wave in [0, 1] with soft edges and period 2 pi."""
    return 0.5 + 0.5 * np.tanh(3 * np.sin(phase))


def _stripes(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, _ = _rotated(centre, rng.uniform(0, np.pi))
    return _wave(2 * np.pi * x / rng.uniform(6, 9))


def _checks(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = _rotated(centre, rng.uniform(0, np.pi))
    period = 2 * np.pi / rng.uniform(10, 14)
    return 0.5 + 0.5 * np.tanh(4 * np.sin(x * period) * np.sin(y * period))


def _dots(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = _rotated(centre, rng.uniform(0, np.pi))
    period = 2 * np.pi / rng.uniform(7, 10)
    return 0.5 + 0.5 * np.tanh(4 * (np.cos(x * period) + np.cos(y * period) - 0.9))


def _circles(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = _rotated(centre, 0)
    return _wave(2 * np.pi * np.hypot(x, y) / rng.uniform(6, 9))


def _zigzag(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = _rotated(centre, rng.uniform(0, np.pi))
    period = rng.uniform(9, 12)
    return _wave(2 * np.pi * (y + 2 * np.abs((x / period) % 2 - 1) * 4) / rng.uniform(7, 9))


def _plain(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), rng.uniform(0, 1))


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Cloudy noise of several sizes, in [0, 1]."""
    cloud = np.zeros((HEIGHT, WIDTH))
    for cells, weight in ((4, 1.0), (9, 0.7), (24, 0.5)):
        coarse = rng.normal(size=(cells, cells + 1))
        cloud += weight * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return 0.5 + 0.5 * np.tanh(cloud)


PATTERNS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "disc": _stripes,
    "square": _dots,
    "triangle": _checks,
    "star": _circles,
    "ring": _plain,
    "cross": _zigzag,
}


def _paint(pattern: np.ndarray, hue: float, most_saturation: float, rng: np.random.Generator) -> np.ndarray:
    """Blends a dark and a light colour of similar hue by a pattern in [0, 1]: (HEIGHT, WIDTH, 3) in [0, 1]. hue: 0 to 1 around
    the colour circle."""
    colours = [
        hsv2rgb([(hue + rng.uniform(-0.04, 0.04)) % 1, rng.uniform(0.3, most_saturation), rng.uniform(*values)])
        for values in ((0.15, 0.45), (0.6, 0.95))
    ]
    first, second = colours if rng.random() < 0.5 else colours[::-1]
    return first + pattern[..., None] * (second - first)


def _cover(kind: str, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """The share of each pixel that the outline covers: (HEIGHT, WIDTH) in [0, 1]."""
    large = np.zeros((SUPERSAMPLING * HEIGHT, SUPERSAMPLING * WIDTH), np.uint8)
    place = SUPERSAMPLING * centre
    if kind in ("disc", "ring"):
        cv2.circle(large, place.astype(int).tolist(), int(SUPERSAMPLING * radius), 255, -1)
        if kind == "ring":
            cv2.circle(large, place.astype(int).tolist(), int(SUPERSAMPLING * radius * 0.5), 0, -1)
    else:
        corners = _polygon(kind) * SUPERSAMPLING * radius
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        cv2.fillPoly(large, [(corners @ rotation + place).round().astype(np.int32)], 255)
    return cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) / 255


def _polygon(kind: str) -> np.ndarray:
    """The corners (K, 2) of an outline of radius 1 around the origin."""
    if kind == "cross":
        arm = 0.36
        quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
        angles = np.pi / 2 * np.arange(4)
        turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in angles]
        return np.concatenate([quarter @ turn for turn in turns])
    count, inner = {"square": (4, None), "triangle": (3, None), "star": (10, 0.45)}[kind]
    around = 2 * np.pi * np.arange(count) / count
    radius = np.ones(count) if inner is None else np.where(np.arange(count) % 2, inner, 1.0)
    return np.stack([np.cos(around), np.sin(around)], axis=1) * radius[:, None]
