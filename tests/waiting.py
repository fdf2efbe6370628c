"""Waiting for what other threads, processes or the kernel do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    """Wait for *condition*, which is looked at again and again; *patience_s* at most."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
