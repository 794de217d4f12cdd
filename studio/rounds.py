"""Training in the background: rounds of train.py as processes of their own.

    studio/rounds/list_N.txt        pictures of round N
    studio/rounds/N.json            its commands and classes; written before the round begins
    studio/rounds/N/                its run folder
    studio/predictions/             predictions of the last finished round, and of which round (round.json)

A round trains on the pictures that have labels when it begins; new strokes on them count at once. If these are the pictures of
the round before, it starts from the weights of that round. With other pictures, classes or configs, it starts from ImageNet
weights: a network that has seen few pictures for long learns others badly (docs/studio.md). A paused round goes on where it
was; a killed one begins again from its last checkpoint.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets.files import UNLABELLED, write_text
from engine.provenance import REPOSITORY
from studio.folder import StudioFolder

STEPS = (12, 30, 60, 120, 240)  # of the first rounds; later rounds have as many as the last
UR_ROUNDS = 3  # rounds of UR from ImageNet weights on; then SS follows
UNCHANGED_ROUNDS = 5  # rounds without a new stroke before training waits
ATTEMPTS = 3  # of a round that something kills
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of a process that was asked to stop
PR_SET_PDEATHSIG = 1  # Linux: signal to get when the parent dies
PRCTL = ctypes.CDLL(None).prctl  # found now: after a fork, only simple calls are safe


@dataclass
class State:
    """What the page shows of the training."""

    running: bool = False
    activity: str = "not started"
    round: int = 0
    step: int = 0
    steps: int = 0
    predicted: int = 0
    """round of the predictions; 0: none"""


class Rounds:
    """The training of a studio. At most one runs."""

    def __init__(self, folder: StudioFolder, configs: tuple[str, ...], changed: Callable[[State], None]):
        """configs: YAML files for all rounds; none: CC4S's UR, then SS. changed: called with `state` when it has changed."""
        self.folder, self.configs, self._changed = folder, configs, changed
        self.home = folder.root / "studio" / "rounds"
        self.home.mkdir(parents=True, exist_ok=True)
        self.predictions = folder.root / "studio" / "predictions"
        self.state = State(round=max(self._numbers(), default=0), predicted=self._predicted())
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None
        self._stop = threading.Event()
        if (self.home / "running").exists():  # the studio was killed while it trained
            self.start()

    def start(self) -> None:
        """Starts, or goes on with the round that was stopped."""
        with self._lock:
            if self.state.running:
                return
            if self._thread:
                self._thread.join()  # it has said that it ends
            self._stop.clear()
            (self.home / "running").touch()
            self._show(running=True)
            self._thread = threading.Thread(target=self._loop, daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stops after the current step; `start` goes on."""
        self.close()
        (self.home / "running").unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the process, as at the end of the studio. A studio that opens the folder again goes on training."""
        with self._lock:
            self._stop.set()
            process = self._process
            if process and process.poll() is None:
                process.terminate()
            if self._thread:
                self._thread.join()

    def curves(self) -> list[dict]:
        """Returns the lines of metrics.jsonl of all rounds; `step` counts the steps of all rounds."""
        lines, before = [], 0
        for number in self._numbers():
            file = self.home / str(number) / "metrics.jsonl"
            of_round = (
                [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
            )
            lines += [line | {"step": before + line["step"], "round": number} for line in of_round]
            before += max((line["step"] for line in of_round), default=0)
        return lines

    def checkpoint(self) -> Path | None:
        """Returns the checkpoint of the last finished round."""
        return self.home / str(self.state.predicted) / "best.pt" if self.state.predicted else None

    def _loop(self) -> None:
        unchanged, seen, reason = 0, None, "stopped by an error: see the terminal"
        try:
            while not self._stop.is_set():
                versions = {name: self.folder.document(name)["version"] for name in self.folder.labelled()}
                unchanged, seen = (unchanged + 1 if versions == seen else 1), versions
                found = self._reason_to_wait(unchanged) or self._round(self._unfinished() or self._plan())
                if found:
                    reason = found
                    break
            else:
                reason = "paused"
        finally:
            if not self._stop.is_set():
                (self.home / "running").unlink(missing_ok=True)
            self._show(running=False, activity=reason)

    def _reason_to_wait(self, unchanged: int) -> str | None:
        """Returns why there is nothing to train now; None if there is. unchanged: rounds with the strokes of now."""
        if unchanged > UNCHANGED_ROUNDS:
            return "finished: draw more, then train again"
        return None if len(self._present()) > 1 else "draw strokes of two classes first"

    def _plan(self) -> int:
        """Writes the files of a new round and returns its number."""
        last = max(self._numbers(), default=0)
        before = self._of_round(last) if last and self._can_follow(self._of_round(last)) else None
        number, pictures = last + 1, self._pictures()
        goes_on = before is not None and (self.home / f"list_{last}.txt").read_text() == pictures
        place = before["place"] + 1 if before and goes_on else 1
        steps = next((more for more in STEPS if not before or more > before["steps"]), STEPS[-1])
        listed = self.home / f"list_{number}.txt"
        write_text(listed, pictures)
        configs = self.configs or (f"configs/cc4s/{'ur' if place <= UR_ROUNDS else 'ss'}.yaml", "configs/cc4s/studio.yaml")
        root = str(self.folder.root.resolve())
        out, superpixels = self.home / str(number), str(self.folder.root.resolve() / "studio" / "superpixels")
        checkpoint = str(out / "best.pt")
        train = [argument for config in configs for argument in ("--config", config)]
        data = {"root": root, "labels": "scribbles", "truth": "scribbles", "train_split": listed, "val_split": listed}
        for name, value in (data | {"superpixels": superpixels}).items():
            train += [f"--data.{name}", str(value)]
        train += ["--train.steps", str(steps), "--train.val_steps", str(steps), "--train.log_every", "2"]
        train += ["--train.seed", str(number), "--out", str(out)]
        if goes_on:
            train += ["--init", str(self.home / str(last) / "best.pt")]
        plan = {
            "place": place,  # 1: from ImageNet weights
            "root": root,
            "classes": self.folder.classes,
            "configs": self.configs,
            "steps": steps,
            "commands": {
                "superpixels": ["-m", "tools.superpixels", root, "--split", str(listed), "--out", superpixels],
                "training": ["train.py", *train],
                "predicting": ["-m", "studio.network", root, "--checkpoint", checkpoint, "--classes", str(self._present())],
            },
        }
        write_text(self.home / f"{number}.json", json.dumps(plan, indent=2) + "\n")
        return number

    def _round(self, number: int) -> str | None:
        """Runs the commands of a round. Returns what went wrong, None if nothing did or the person stopped it."""
        plan = self._of_round(number)
        for activity, command in plan["commands"].items():
            self._show(activity=activity, round=number, steps=plan["steps"], step=0)
            for attempt in range(1, ATTEMPTS + 1):
                code, last = self._run(command, number)
                if self._stop.is_set():
                    return None
                if code == 0:
                    break
                if code in STOPPED:
                    return "stopped by a signal"
                if code > 0 or attempt == ATTEMPTS:  # an error; a negative code is a signal
                    if activity != "predicting":  # another try would meet the same files
                        self._forget(number)
                    if plan["classes"] != self.folder.classes:  # labels of a new class; the next round knows the class
                        return None
                    return f"{activity} failed: {last}"
        write_text(self.predictions / "round.json", json.dumps({"round": number}))
        self._show(predicted=number)
        self._delete_unused(number)
        return None

    def _delete_unused(self, finished: int) -> None:
        """Deletes what no later round reads, 110 MB a round: states of trainings, and the networks before `finished`."""
        for number in self._numbers():
            for name in ("last.pt", "best.pt", "best.onnx"):
                if number < finished or name == "last.pt":
                    (self.home / str(number) / name).unlink(missing_ok=True)

    def _run(self, command: list[str], number: int) -> tuple[int, str]:
        """Runs a Python command and follows its steps. Returns the exit code and the last line of its output."""
        log = self.home / f"{number}.log"
        metrics = self.home / str(number) / "metrics.jsonl"
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=REPOSITORY,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl+C in the terminal is for the studio
                preexec_fn=_be_a_quiet_child,
            )
            if self._stop.is_set():  # it was set while the process started
                self._process.terminate()
            while self._process.poll() is None:
                try:
                    self._process.wait(0.5)
                except subprocess.TimeoutExpired:
                    lines = metrics.read_text().splitlines() if metrics.is_file() else []
                    step = json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0
                    if step != self.state.step:
                        self._show(step=step)
        lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        return self._process.returncode, lines[-1] if lines else ""

    def _present(self) -> list[int]:
        """Returns the ids of the classes with strokes."""
        labelled = self.folder.labelled()
        found = {stroke["class"] for name in labelled for stroke in self.folder.document(name)["strokes"]}
        return sorted(found - {UNLABELLED})

    def _numbers(self) -> list[int]:
        return sorted(int(file.stem) for file in self.home.glob("*.json"))

    def _pictures(self) -> str:
        """Returns the names of the pictures with labels, a line each."""
        return "\n".join(self.folder.labelled()) + "\n"

    def _unfinished(self) -> int | None:
        """Returns the round that was stopped, if it can go on: it has a checkpoint, or its pictures are those of now."""
        last = max(self._numbers(), default=0)
        if not last or last == self.state.predicted:
            return None
        plan = self._of_round(last)
        same_folder = plan["root"] == str(self.folder.root.resolve())
        same_plan = same_folder and plan["classes"] == self.folder.classes and tuple(plan["configs"]) == self.configs
        begun = (self.home / str(last) / "last.pt").is_file()
        if same_plan and (begun or (self.home / f"list_{last}.txt").read_text() == self._pictures()):
            return last
        self._forget(last)
        return None

    def _can_follow(self, plan: dict) -> bool:
        """Whether a round of now can start from the weights of a round: the configs are the same, and so are the classes, which
        may have other names."""
        was, now = plan["classes"], self.folder.classes
        return len(was) == len(now) and (was == now or sorted(was) != sorted(now)) and tuple(plan["configs"]) == self.configs

    def _forget(self, number: int) -> None:
        (self.home / f"{number}.json").unlink(missing_ok=True)
        shutil.rmtree(self.home / str(number), ignore_errors=True)

    def _of_round(self, number: int) -> dict:
        return json.loads((self.home / f"{number}.json").read_text())

    def _predicted(self) -> int:
        file = self.predictions / "round.json"
        number = int(json.loads(file.read_text())["round"]) if file.is_file() else 0
        return number if (self.home / str(number) / "best.pt").is_file() else 0

    def _show(self, **what: object) -> None:
        self.state = State(**(asdict(self.state) | what))
        self._changed(self.state)


def _be_a_quiet_child() -> None:
    """Runs in the new process: it gives way to the studio, and ends with it."""
    os.nice(10)
    PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
