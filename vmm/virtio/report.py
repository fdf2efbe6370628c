"""Telling the user what a guest or a back end does wrong, without letting a guest flood the log."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.trace import Tally

#: So many reports at once, then one every `INTERVAL_S` seconds.
BURST = 5
INTERVAL_S = 10.0


class Reporter:
    """Passes lines about the device *name* on to *sink*, at a limited rate; all are counted, under ``NAME.faults``."""

    __slots__ = ("_clock", "_credit", "_dropped", "_last", "_name", "_sink", "_tally")

    def __init__(
        self, name: str, sink: Callable[[str], None], tally: Tally, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._sink, self._tally, self._clock = name, sink, tally, clock
        self._credit = float(BURST)
        self._last = clock()
        self._dropped = 0

    def __call__(self, text: str) -> None:
        """Report *text*, or drop it if there were too many; the next line that passes tells how many were dropped."""
        self._tally.count(f"{self._name}.faults")
        now = self._clock()
        self._credit = min(float(BURST), self._credit + (now - self._last) / INTERVAL_S)
        self._last = now
        if self._credit < 1:
            self._dropped += 1
            return
        self._credit -= 1
        dropped = f" ({self._dropped} more were not shown)" if self._dropped else ""
        self._dropped = 0
        self._sink(f"{self._name}: {text}{dropped}")
