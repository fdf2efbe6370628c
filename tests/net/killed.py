"""What is left when a process is killed in the middle of something."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import vmm.host.net

_ROOM = os.path.dirname(vmm.host.net.__file__)


def lines(action: Callable[[], object]) -> int:
    """How many different lines of `vmm.host.net` a process comes through that does *action*, to its end."""
    reading, writing = os.pipe()
    code = _in_child(action, lambda number: os.write(writing, b"."))
    os.close(writing)
    with open(reading, "rb") as file:
        count = len(file.read())
    assert code == 0
    return count


def kill_at(action: Callable[[], object], line: int) -> None:
    """Do *action* in a child, and kill it when it comes to the *line*-th of those `lines`."""

    def at_line(number: int) -> None:
        if number == line:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = _in_child(action, at_line)
    # Waiting for others takes a line more or less each time, so the last of them may not be come to.
    assert ended == -signal.SIGKILL or (ended == 0 and line > 0)


def _in_child(action: Callable[[], object], at_line: Callable[[int], object]) -> int:
    """The exit code of a child that does *action* and calls *at_line* with the number of each line that is new."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.settrace(_tracer(at_line))
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _tracer(at_line: Callable[[int], object]) -> Callable[[FrameType, str, Any], Any]:
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(_ROOM):
            return None
        if event == "line" and (path, frame.f_lineno) not in seen:
            seen.add((path, frame.f_lineno))
            at_line(len(seen) - 1)
        return trace

    return trace
