"""Progress on stderr: a live line on a terminal, a line per finished stage otherwise."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

REFRESH_S = 0.25


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Progress:
    """Names the stages of one recipe, counts within a stage, and times each."""

    def __init__(self, recipe: str, stream: TextIO = sys.stderr) -> None:
        self._recipe = recipe
        self._stream = stream
        self._live = stream.isatty()
        self._stage = ""
        self._started = 0.0
        self._drawn = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shows `name` while the body runs, and how long it took when it is done."""
        self._stage, self._started, self._drawn = name, time.monotonic(), 0.0
        self.update("")
        try:
            yield
        except BaseException:
            if self._live:
                self._stream.write("\n")
            raise
        self._line(f"{name}: done", end="\n")

    def update(self, detail: str) -> None:
        """Redraws the live line with `detail`, at most every REFRESH_S; silent when not on a terminal."""
        if self._live and time.monotonic() - self._drawn >= REFRESH_S:
            self._drawn = time.monotonic()
            self._line(f"{self._stage}  {detail}" if detail else self._stage, end="")

    def note(self, text: str) -> None:
        """Says something that stays on the screen."""
        start = "\r\x1b[K" if self._live else ""
        self._stream.write(f"{start}{self._recipe}: {text}\n")
        self._stream.flush()

    def _line(self, text: str, end: str) -> None:
        elapsed = _clock(time.monotonic() - self._started)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            text = "\r\x1b[K" + f"{self._recipe}: {text}  {elapsed}"[:width]
        else:
            text = f"{self._recipe}: {text}  {elapsed}"
        self._stream.write(text + end)
        self._stream.flush()
