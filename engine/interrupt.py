"""Signals that ask a training run to stop."""

import signal
from types import FrameType


class StopRequest:
    """Within it, SIGTERM or SIGINT is noted in `signal` instead of ending the program, so that the loop can save first; a
    second SIGINT ends it at once. A second SIGTERM does not: a cluster may send one to us and one to the launcher, which passes
    it on."""

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
    """For a loader's worker: a signal sent to every process of the run is the main one's to act on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
