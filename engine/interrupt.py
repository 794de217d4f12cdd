"""Signals that ask a training run to stop."""

import signal
from types import FrameType


class StopRequest:
    """A context that stores SIGTERM or SIGINT in `signal` instead of ending the program, so that the loop can save first. A
    second SIGINT ends the program at once. A second SIGTERM does not, because a cluster may send SIGTERM to the training and
    to the launcher, and the launcher forwards it."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


def leave_to_main(worker: int) -> None:
    """Makes a loader worker ignore stop signals. All processes of a run get them, but only the main process acts on them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
