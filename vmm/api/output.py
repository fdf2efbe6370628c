"""What the guest prints, for those who are not its terminal: the log, and the watchers of `console.sock`."""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.api.watcher import Watcher
    from vmm.eventloop import EventLoop
    from vmm.host.console import ConsoleTail

#: A log of this size becomes the old log.
LOG_LIMIT = 8 << 20
#: What a new watcher is shown of the past.
PAST_SIZE = 16 << 10
#: How much may wait for the api thread; what is more is lost, because the guest waits for nobody here.
WAITING_LIMIT = 1 << 20
#: Output is taken in pieces of so long, so that a guest which prints a lot does not have to share the GIL each time.
_GATHER_S = 0.01


class Output:
    """Takes what *tail* is fed, from whatever thread, and passes it on in that of *loop*."""

    def __init__(self, loop: EventLoop, tail: ConsoleTail, log: Log) -> None:
        self.watchers: set[Watcher] = set()
        self.past = b""
        self._loop, self._log = loop, log
        self._lock = threading.Lock()  # guards the three below
        self._waiting = bytearray()
        self._lost = 0
        self._asked = False
        self._take(tail.listen(self._take))

    def drain(self) -> None:
        """Pass on what waits."""
        with self._lock:
            data, lost = bytes(self._waiting), self._lost
            self._waiting.clear()
            self._lost, self._asked = 0, False
        if lost:
            data += b"\r\n[pyvmm: %d bytes of output are missing here]\r\n" % lost
        self.past = (self.past + data)[-PAST_SIZE:]
        self._log.write(data)
        for watcher in [*self.watchers]:
            watcher.send(data)

    def _take(self, data: bytes) -> None:
        with self._lock:
            room = WAITING_LIMIT - len(self._waiting)
            self._waiting += data[:room]
            self._lost += max(0, len(data) - room)
            if self._asked:
                return
            self._asked = True
        self._loop.call_later(_GATHER_S, self.drain)


class Log:
    """The file *path*, which becomes *path*.1 when it has grown to `LOG_LIMIT`. *say* hears why it ends, if it does."""

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._fd = -1
        self._size = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Add *data*."""
        if self._fd < 0:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self._size += len(data)
            if self._size >= LOG_LIMIT:
                says_here = os.path.sameopenfile(self._fd, 2)  # as with --detach
                self.close()
                os.rename(self._path, f"{self._path}.1")
                self._open()
                if says_here:
                    os.dup2(self._fd, 2)
        except OSError as error:
            self.close()
            self._say(f"{self._path}: cannot be written: {error.strerror}; it ends here")

    def close(self) -> None:
        """Write no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = 0
