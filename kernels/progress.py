"""Lines that say how far a long measurement is, for a batch job's log, which has no place for a bar."""

import sys
import time
from collections.abc import Callable

# How long a measurement of one kind goes on without a word.
LINE_EVERY_S = 60.0


class ProgressLines:
    """A line on standard error where a kind of measurement begins, and one a minute while it goes on."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``total``: how many measurements there are. ``clock``: seconds from any moment on."""
        self._total, self._clock = total, clock
        self._kind, self._began_s, self._said_s = "", clock(), 0.0

    def begin(self, number: int, kind: str, name: str) -> None:
        """Measurement ``number`` of all, counted from 1, is about to run."""
        now = self._clock()
        if kind == self._kind and now - self._said_s < LINE_EVERY_S:
            return
        self._kind, self._said_s = kind, now
        said = f"flopcast: measures {name} ({number} of {self._total}, after {now - self._began_s:.0f} s)"
        print(said, file=sys.stderr, flush=True)
