"""Progress on stderr: a live line on a terminal, a line per finished stage otherwise."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from .errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REFRESH_S = 0.25
LOG_TAIL_LINES = 20


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

    def run(
        self,
        command: list[str],
        *,
        log: str,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        detail: Callable[[int], str] | None = None,
        counts: tuple[bytes, ...] = (b"",),
    ) -> None:
        """Runs `command`, its output appended to the file `log`, and keeps the live line going.

        `detail` gets the number of output lines so far that start with one of `counts` and returns what to show.
        Raises: RecipeError with the last lines of the output if the command fails.
        """
        lines = 0
        environment = {**os.environ, "LC_ALL": "C", **(env or {})}
        with open(log, "ab") as record, selectors.DefaultSelector() as ready:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
            )
            assert process.stdout is not None
            ready.register(process.stdout, selectors.EVENT_READ)
            rest = b""
            try:
                while True:
                    if ready.select(REFRESH_S):
                        chunk = process.stdout.read(65536)
                        if not chunk:
                            break
                        record.write(chunk)
                        *whole, rest = (rest + chunk).split(b"\n")
                        lines += sum(line.lstrip().startswith(counts) for line in whole)
                    self.update(detail(lines) if detail else "")
                status = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            finally:
                process.stdout.close()
        if status:
            raise RecipeError(f"`{' '.join(command)}` failed with status {status}:\n{_tail(log)}\nall of it: {log}")


def _tail(log: str) -> str:
    with open(log, errors="replace") as record:
        return "".join(f"  {line}" for line in record.readlines()[-LOG_TAIL_LINES:]).rstrip()
