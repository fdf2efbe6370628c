"""The processes of VMs: booted or restored, and gone at the latest when this process is."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import threading
import time

from vmm.api.client import NoAnswer
from vmm.api.place import directory, is_live
from vmm.api.warm import Ended, Warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Process(Protocol):
        """A VM's process, as `vmm.api.warm.Spawned` tells."""

        name: str
        directory: str
        pid: int

        def wait(self, timeout_s: float | None = None) -> Ended:
            """How it has ended."""

        def keep(self) -> None:
            """Let it live on."""

        def close(self) -> None:
            """End it unless it is kept."""


_AGAIN_S = 0.02

_lock = threading.Lock()
_warm: Warm | None = None


def warm() -> Warm:
    """This process's warm process; `close` ends it, as the end of this process does."""
    global _warm
    with _lock:
        if _warm is None:
            _warm = Warm()
            atexit.register(close)
        return _warm


def close() -> None:
    """End the warm process, if there is one."""
    global _warm
    with _lock:
        if _warm is not None:
            _warm.close()
            atexit.unregister(close)
            _warm = None


class Booted:
    """`pyvmm run` with *arguments* as the VM *name*."""

    def __init__(self, name: str, arguments: Sequence[str], wait_s: float) -> None:
        self.name, self.directory = name, directory(name)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vmm", "run", "--name", name, "--vsock", "auto", "--serial", "quiet", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        deadline = time.monotonic() + wait_s
        while not (is_live(name) and os.path.exists(os.path.join(self.directory, "control.sock"))):
            if self._process.poll() is not None:
                raise NoAnswer(self._text(), where=f"VM {name}")
            if time.monotonic() > deadline:
                self.close()
                raise NoAnswer("does not start", where=f"VM {name}")
            time.sleep(_AGAIN_S)

    def wait(self, timeout_s: float | None = None) -> Ended:
        try:
            return Ended(self._process.wait(timeout_s), self._text())
        except subprocess.TimeoutExpired as error:
            raise NoAnswer("has not ended") from error

    def keep(self) -> None:
        pass

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._said.close()

    def _text(self) -> str:
        return os.pread(self._said.fileno(), 32 << 10, 0).decode(errors="replace")


def boot(name: str, arguments: Sequence[str], wait_s: float) -> Process:
    """The VM *name*, whose guest has begun to boot."""
    return Booted(name, arguments, wait_s)


def restore(name: str, snapshot: str, *, disks: Sequence[str], nets: Sequence[str], wait_s: float) -> Process:
    """The VM *name*, whose guest goes on from *snapshot*."""
    return warm().spawn(snapshot, name=name, disks=disks, nets=nets, wait_s=wait_s)
