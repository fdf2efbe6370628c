"""A build under way: its directories, its log, and the commands that it runs."""

from __future__ import annotations

import os
import selectors
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import RecipeError
from .progress import REFRESH_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .progress import Progress

LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class Build:
    """`work` holds what only the build needs and survives an interruption; `out` is to be the finished directory."""

    work: str
    out: str
    progress: Progress

    def run(
        self,
        command: list[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        detail: Callable[[int], str] | None = None,
    ) -> None:
        """Runs `command`, its output going to build.log, and keeps the live line going.

        `detail` gets the number of lines of output so far and returns what to show.
        Raises: RecipeError with the last lines of the output if the command fails.
        """
        log = os.path.join(self.work, "build.log")
        lines = 0
        with open(log, "ab") as record, selectors.DefaultSelector() as ready:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                close_fds=False,  # the build's lock goes to the children: it is held until the last of them is gone
            )
            assert process.stdout is not None
            ready.register(process.stdout, selectors.EVENT_READ)
            try:
                while True:
                    if ready.select(REFRESH_S):
                        chunk = process.stdout.read(65536)
                        if not chunk:
                            break
                        record.write(chunk)
                        lines += chunk.count(b"\n")
                    self.progress.update(detail(lines) if detail else "")
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
