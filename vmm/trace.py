"""The `--trace` and `--stats` plumbing: what happened, told in the names the devices declare."""

from __future__ import annotations

from collections.abc import Callable

#: Everything that can be traced.
TRACE_KINDS = ("exits", "pio", "mmio", "virtio", "assist")

#: A trace sink: one line of text, without a newline. `None` where that kind is not traced.
Trace = Callable[[str], None]


class Tally:
    """How often things happened, by name, and how long they took in all."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def count(self, name: str, times: int = 1) -> None:
        """*name* happened *times* more."""
        self.counts[name] = self.counts.get(name, 0) + times

    def spend(self, name: str, seconds: float) -> None:
        """*name* happened once more and took *seconds*."""
        self.count(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
