"""The warm process that this process's VMs come from: they are gone at the latest when this process is."""

from __future__ import annotations

import atexit
import threading

from vmm.api.warm import Warm

_lock = threading.Lock()
_warm: Warm | None = None


def warm() -> Warm:
    """The warm process, until `close` or the end of this process."""
    global _warm
    with _lock:
        if _warm is None:
            _warm = Warm()
            atexit.register(close)
        return _warm


def close() -> None:
    """End the warm process, if there is one; its VMs go on."""
    global _warm
    with _lock:
        if _warm is not None:
            _warm.close()
            atexit.unregister(close)
            _warm = None
