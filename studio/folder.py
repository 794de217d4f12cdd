"""The folder of a studio: a data set in VOC's layout, with the strokes beside it.

    JPEGImages/ID.jpg                     pictures, at most `long_side` pixels
    scribbles/ID.png                      labels, 255 = unlabelled: what training reads
    ImageSets/Segmentation/studio.txt     pictures with labels
    classes.txt                           class names in id order
    studio/strokes/ID.json                strokes; scribbles/ID.png can be drawn again from them
    studio/colours.json                   colour of each class
    studio/rounds/, studio/predictions/   what the computer made; may be deleted

All writes are atomic. A method may be called from any thread.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.files import PALETTE, UNLABELLED, read_image, read_label, write_label, write_text
from datasets.index import IMAGE_SUFFIXES, read_class_file
from errors import UserError
from studio import pictures
from studio.strokes import checked, draw, runs_of

SPLIT = "studio"  # not "train": a data set that was there before keeps its list
FIRST_CLASSES = ("background", "object")
MOST_CLASSES = 100
COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Picture:
    """A picture and its size."""

    id: str
    path: Path
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.height, self.width


def as_json(content: object) -> str:
    """Returns compact JSON. Arrays of runs become lists."""
    return json.dumps(content, separators=(",", ":"), default=list)


class StudioFolder:
    """Pictures, strokes, labels and classes of a folder."""

    def __init__(self, root: Path, long_side: int):
        """Opens or makes the folder. Pictures that lie in it directly are copied into JPEGImages, once. Raises UserError if
        another studio has the folder open, if a file cannot be read, or if the folder is a data set without classes.txt or of
        the plain layout."""
        self.root, self.long_side = root, long_side
        self.lock = threading.RLock()
        self._decoding = threading.Lock()  # one at a time: a large picture takes hundreds of megabytes
        self.notes: list[str] = []
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file: give a folder")
        if (root / "images").is_dir() and not (root / "JPEGImages").is_dir():
            raise UserError(f"{root} has the plain layout (images/): give another folder, or rename images/ to JPEGImages/")
        if pictures.files_in(root) and not (root / "classes.txt").exists():
            raise UserError(f"{root / 'classes.txt'} not found: write the class names there, one per line, in id order")
        for folder in ("JPEGImages", "scribbles", "studio/strokes", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self._lock_file = self._take_lock()
        if not (root / "classes.txt").exists():
            self._write_lines(root / "classes.txt", FIRST_CLASSES)
        self.classes = list(read_class_file(root / "classes.txt"))
        self.colours = self._read_colours()
        self.pictures: dict[str, Picture] = {}
        self.documents: dict[str, dict] = {}
        self._labels: dict[str, np.ndarray] = {}
        for path in pictures.files_in(root):
            self._register(path)
        for name in self.pictures:
            self._complete(name)
        self._import_loose()
        self._write_split()

    # Pictures

    def add_picture(self, file_name: str, data: bytes) -> tuple[str, str | None]:
        """Stores a picture. Returns its id, and a note if it was made smaller. Raises UserError if the file is no picture of a
        known format and size."""
        with self._decoding:
            picture, suffix, note = pictures.decode(data, Path(file_name).name, self.long_side)
        with self.lock:
            left = {path.stem for folder in ("scribbles", "studio/strokes") for path in (self.root / folder).iterdir()}
            chosen = pictures.free_id(file_name, set(self.pictures) | left)
            path = self.root / "JPEGImages" / f"{chosen}{suffix}"
            pictures.store(picture, path)
            self._register(path)
            return chosen, note

    def image(self, name: str) -> np.ndarray:
        """Returns a picture, (H, W, 3) uint8 RGB."""
        return read_image(self.pictures[name].path)

    def _register(self, path: Path) -> None:
        if path.stem in self.pictures:
            raise UserError(f"{path} and {self.pictures[path.stem].path.name} would share a label: rename one")
        picture = Picture(path.stem, path, *pictures.size_of(path))
        self.documents[path.stem] = self._read_document(picture)
        self.pictures[path.stem] = picture

    def _import_loose(self) -> None:
        """Copies the pictures that lie in the folder directly, except those copied before. A bad one becomes a note."""
        record = self.root / "studio" / "imported.json"
        imported = json.loads(record.read_text()) if record.is_file() else []
        loose = [path for path in sorted(self.root.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        new = [path for path in loose if path.name not in imported and not path.name.startswith(".")]
        for path in tqdm(new, "adding pictures", unit="picture", leave=False, disable=None):
            try:
                self.add_picture(path.name, path.read_bytes())
            except UserError as error:
                self.notes.append(str(error))
            imported.append(path.name)
            self._write_json(record, imported)  # after each: an import that is cut short goes on

    # Strokes and labels

    def document(self, name: str) -> dict:
        """Returns {"version", "strokes"} of a picture."""
        with self.lock:
            document = self.documents[name]
            return {"version": document["version"], "strokes": list(document["strokes"])}

    def change(self, name: str, add: list[dict], remove: list[str]) -> int:
        """Removes strokes by id, then adds strokes at the end, and returns the new version. Strokes that are there or gone
        already are passed over, so two pages may send their changes in any order. Raises UserError for a stroke that cannot
        be drawn; then nothing is changed."""
        picture = self.pictures[name]
        with self.lock:
            document = self.documents[name]
            new = [checked(stroke, picture.shape, len(self.classes)) for stroke in add]
            gone = set(remove)
            kept = [stroke for stroke in document["strokes"] if stroke["id"] not in gone]
            there = {stroke["id"] for stroke in kept}
            new = [stroke for stroke in new if stroke["id"] not in there]
            if not new and len(kept) == len(document["strokes"]):
                return document["version"]
            label = self.label(name).copy()
            before = _hash(label)
            if len(kept) < len(document["strokes"]):
                label[...] = UNLABELLED
                draw(label, kept)
            draw(label, new)
            changed = {"version": document["version"] + 1, "strokes": kept + new, "before": before}
            self._write_json(self._document_file(name), changed)
            write_label(self._label_file(name), label)
            had = self.has_labels(name)
            self.documents[name] = changed
            self._remember(name, label)
            if had != self.has_labels(name):
                self._write_split()
            return changed["version"]

    def label(self, name: str) -> np.ndarray:
        """Returns the label map of a picture, (H, W) uint8, 255 = unlabelled. Do not change it."""
        with self.lock:
            if name not in self._labels:
                label = np.full(self.pictures[name].shape, UNLABELLED, np.uint8)
                draw(label, self.documents[name]["strokes"])
                self._remember(name, label)
            return self._labels[name]

    def has_labels(self, name: str) -> bool:
        """Whether a picture has strokes of a class."""
        return any(stroke["class"] != UNLABELLED for stroke in self.documents[name]["strokes"])

    def labelled(self) -> list[str]:
        """Returns the ids of the pictures with labels."""
        with self.lock:
            return [name for name in self.pictures if self.has_labels(name)]

    def _remember(self, name: str, label: np.ndarray) -> None:
        self._labels.pop(name, None)
        self._labels[name] = label
        while len(self._labels) > 16:
            del self._labels[next(iter(self._labels))]

    def _document_file(self, name: str) -> Path:
        return self.root / "studio" / "strokes" / f"{name}.json"

    def _label_file(self, name: str) -> Path:
        return self.root / "scribbles" / f"{name}.png"

    def _read_document(self, picture: Picture) -> dict:
        """Reads the strokes of a picture. Labels that another program drew become regions."""
        file = self._document_file(picture.id)
        if file.is_file():
            try:
                document = json.loads(file.read_text(encoding="utf-8"))
                strokes = [checked(stroke, picture.shape, len(self.classes)) for stroke in document["strokes"]]
                return {"version": int(document["version"]), "strokes": strokes, "before": document.get("before")}
            except (ValueError, KeyError, TypeError, UserError) as error:
                raise UserError(f"{file}: not readable as strokes ({error}): delete it to start from scribbles/") from error
        if not self._label_file(picture.id).is_file():
            return {"version": 0, "strokes": [], "before": None}
        label = self._read_label(picture)
        present = [number for number in np.unique(label).tolist() if number != UNLABELLED]
        regions = [checked(_region(label == number, number), picture.shape, len(self.classes)) for number in present]
        return {"version": 1, "strokes": regions, "before": None}

    def _read_label(self, picture: Picture) -> np.ndarray:
        file = self._label_file(picture.id)
        label = read_label(file)
        if label.shape != picture.shape:
            raise UserError(f"{file} is of another size than {picture.path}")
        unknown = label[(label >= len(self.classes)) & (label != UNLABELLED)]
        if unknown.size:
            raise UserError(f"{file}: class {unknown[0]} is not one of the {len(self.classes)} classes of classes.txt")
        return label

    def _complete(self, name: str) -> None:
        """Draws the label map if the studio was killed between the strokes and the label map: then the map is that of before
        the last change. If another program has changed the label map, the changes become strokes."""
        if not self._document_file(name).is_file():
            return
        file, drawn = self._label_file(name), self.label(name)
        label = self._read_label(self.pictures[name]) if file.is_file() else None
        if label is None or _hash(label) == self.documents[name]["before"]:
            write_label(file, drawn)
            return
        changed = label != drawn
        if changed.any():
            numbers = np.unique(label[changed]).tolist()
            self.change(name, [_region(changed & (label == number), number) for number in numbers], [])

    # Classes

    def set_classes(self, classes: list[dict]) -> None:
        """Renames, recolours and adds classes. Raises UserError for a class too few, too many, or without a name of its own."""
        names = [str(entry.get("name", "")).strip() for entry in classes]
        colours = [str(entry.get("colour", "")).lower() for entry in classes]
        if any(name.splitlines() != [name] or len(name) > 60 for name in names) or len(set(names)) < len(names):
            raise UserError("each class needs a name of its own, of 1 to 60 letters")
        if not all(COLOUR.fullmatch(colour) for colour in colours):
            raise UserError("a colour is # and 6 hexadecimal digits")
        with self.lock:
            if not max(len(self.classes), 2) <= len(names) <= max(len(self.classes), MOST_CLASSES):
                raise UserError(f"classes can be added, up to {MOST_CLASSES}, and renamed, but not deleted")
            self._write_lines(self.root / "classes.txt", names)
            self._write_json(self.root / "studio" / "colours.json", colours)
            self.classes, self.colours = names, colours

    def _read_colours(self) -> list[str]:
        file = self.root / "studio" / "colours.json"
        saved = []
        if file.is_file():
            try:
                saved = [colour for colour in json.loads(file.read_text()) if COLOUR.fullmatch(colour)]
            except (ValueError, TypeError) as error:
                raise UserError(f"{file}: not readable as colours: delete it") from error
        usual = ["#8a8f98"] + ["#{:02x}{:02x}{:02x}".format(*PALETTE[number]) for number in range(1, 256)]
        return (saved + usual[len(saved) :])[: len(self.classes)]

    # Files

    def _write_split(self) -> None:
        self._write_lines(self.root / "ImageSets" / "Segmentation" / f"{SPLIT}.txt", self.labelled())

    def _take_lock(self) -> int:
        """Returns the lock file's descriptor. The lock ends with this process."""
        file = os.open(self.root / "studio" / ".lock", os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"another studio has {self.root} open: close it first") from error
        return file

    @staticmethod
    def _write_json(file: Path, content: object) -> None:
        write_text(file, as_json(content))

    @staticmethod
    def _write_lines(file: Path, lines: list[str] | tuple[str, ...]) -> None:
        write_text(file, "".join(f"{line}\n" for line in lines))


def _hash(label: np.ndarray) -> str:
    """Returns the SHA-256 of a label map (H, W) uint8."""
    return hashlib.sha256(label.tobytes()).hexdigest()


def _region(mask: np.ndarray, number: int) -> dict:
    """A stroke of the pixels in a mask (H, W) bool."""
    kind = {"id": os.urandom(16).hex(), "kind": "region", "class": number, "source": "human", "time": 0}
    return kind | {"runs": runs_of(mask)}
