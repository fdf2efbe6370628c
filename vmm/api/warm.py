"""VMs in milliseconds: a process that has everything imported, and becomes one that goes on from a snapshot.

The warm process (`vmm.cli.warm`) always has a copy of itself waiting at one end of a socket. A request is one message
with a JSON object, and one end of a channel. The copy that takes it answers there, is the VM from then on, and ends
with it:

=======  =========================================  =================================================================
from     message                                    when
=======  =========================================  =================================================================
VM       {"name": …, "directory": …, "pid": …}      its guest runs; with a pidfd of its process
VM       {"error": {…}}                             it cannot be: as in docs/control.md
VM       {"code": …, "said": …}                     it has ended: the exit code, and what it has had to say
user     b"keep"                                    it shall live on when the channel is closed; else it ends then
=======  =========================================  =================================================================
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

from vmm.api.client import NoAnswer, error_of
from vmm.errors import HostError

#: How long a VM may take to run, by default, in seconds.
WAIT_S = 30.0
MESSAGE_MAX = 128 << 10
KEEP = b"keep"
#: A VM that is to end and does not gets so long until it is killed.
_PATIENCE_S = 10.0
#: This one, even where its path leads through directories that the user may not enter.
_INTERPRETER = "/proc/self/exe"
_KILLED = -9


class Ended:
    """How a VM ended: pyvmm's exit *code* (-9: it was killed), and what pyvmm *said* about it."""

    def __init__(self, code: int, said: str) -> None:
        self.code, self.said = code, said

    def __repr__(self) -> str:
        return f"Ended({self.code}, {self.said!r})"


class Warm:
    """Makes VMs from snapshots in milliseconds. It is started once, in a tenth of a second, and used by any thread.

    Raises:
        HostError: it cannot be started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(
        self,
        snapshot: str,
        *,
        name: str = "",
        disks: Sequence[str] | None = None,
        nets: Sequence[str] | None = None,
        vsock: str | None = None,
        serial: str = "quiet",
        timeout_s: float | None = None,
        clone: bool = False,
        wait_s: float = WAIT_S,
    ) -> Spawned:
        """A VM that goes on from the file *snapshot*, and whose guest runs. It ends with this process, or before.

        *disks*, *nets*, *vsock* and *serial* are what `pyvmm restore` takes, None is what the machine had; a *clone*
        does not write to disks that others may have too, and joins its networks as another guest. The VM has the
        caller's directory and environment.

        Raises:
            ConfigError, HostError: what `pyvmm restore` would say.
            NoAnswer: it does not run within *wait_s*.
        """
        options = {"name": [name], "disk": disks, "net": nets, "vsock": vsock and [vsock], "serial": [serial]}
        options["clone"] = [""] if clone else None
        options["timeout"] = None if timeout_s is None else [repr(timeout_s)]
        given = {option: list(values) for option, values in options.items() if values is not None}
        return self._spawn({"snapshot": os.path.abspath(snapshot), "options": given}, wait_s)

    def boot(self, arguments: Sequence[str], *, wait_s: float = WAIT_S) -> Spawned:
        """A VM as `pyvmm run` with *arguments*, as soon as its guest runs; otherwise as `spawn`."""
        return self._spawn({"arguments": list(arguments)}, wait_s)

    def _spawn(self, request: dict[str, Any], wait_s: float) -> Spawned:
        request["directory"] = os.getcwd()
        environment = dict(os.environ)
        if environment != self._environment:
            request["environment"] = environment
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._ask(json.dumps(request).encode(), theirs)
            return Spawned(ours, wait_s)
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """End the warm process; its VMs go on."""
        self._door.close()
        self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # From the directory of this pyvmm, whatever the user's may have in it.
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        #: Of the warm process: a request that comes with none means this one.
        self._environment = dict(os.environ)
        with theirs:
            self._door = ours
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vmm.cli.warm", str(theirs.fileno())],
                executable=_INTERPRETER, cwd=home, pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def _ask(self, request: bytes, channel: socket.socket) -> None:
        """Hand in *request*; to another warm process if this one is dead."""
        with self._lock:
            for last in (False, True):
                try:
                    socket.send_fds(self._door, [request], [channel.fileno()])
                    return
                except (BrokenPipeError, ConnectionResetError) as error:
                    if last:
                        raise HostError("the warm process does not start") from error
                    self.close()
                    self._start()


class Spawned:
    """The VM at the other end of *channel*, once its guest runs; *name*, *directory* and *pid* are what they say.

    Not for several threads.
    """

    def __init__(self, channel: socket.socket, wait_s: float) -> None:
        self._channel = channel
        self._ended: Ended | None = None
        self._kept = False
        self._process = -1
        started, fds = self._next(time.monotonic() + wait_s)
        if started is None:
            raise NoAnswer("has died before it ran", where="the warm process")
        if "error" in started:
            raise error_of(started["error"])
        self.name: str = started["name"]
        self.directory: str = started["directory"]
        self.pid: int = started["pid"]
        (self._process,) = fds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float | None = None) -> Ended:
        """How the VM has ended, when nothing is left of it.

        Raises:
            NoAnswer: it has not, after *timeout_s*.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._ended is None:
            message, _ = self._next(deadline)
            self._ended = Ended(message["code"], message["said"]) if message else Ended(_KILLED, "")
        if not _ends(self._process, deadline):
            raise NoAnswer("has not ended", where=f"VM {self.name}")
        return self._ended

    def signal(self, number: int) -> None:
        """Send the VM's process a signal, if it has not ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, number)

    def keep(self) -> None:
        """Let the VM live on when this process ends, or closes it."""
        with suppress(BrokenPipeError):  # it has ended
            self._channel.send(KEEP)
        self._kept = True

    def close(self) -> None:
        """End the VM unless it is kept, and wait until nothing is left of it."""
        if self._process < 0:
            return
        if not self._kept:
            self._channel.shutdown(socket.SHUT_WR)
            if not _ends(self._process, time.monotonic() + _PATIENCE_S):
                self.signal(signal.SIGKILL)
                _ends(self._process, None)
        self._channel.close()
        os.close(self._process)
        self._process = -1

    def _next(self, deadline: float | None) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message, and descriptors that come with it; None when the process is gone."""
        try:
            self._channel.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            what = "does not run in time" if self._process < 0 else "has not ended"
            raise NoAnswer(what, where="the warm process" if self._process < 0 else f"VM {self.name}") from error
        except ConnectionError:
            return None, []
        return (json.loads(data) if data else None), fds


def _ends(process: int, deadline: float | None) -> bool:
    """Whether the process that the pidfd *process* is of ends by then."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(None if deadline is None else max(0.0, 1e3 * (deadline - time.monotonic()))))
