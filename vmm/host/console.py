"""Where the output of the guest's consoles goes: kept for crash reports, searched for panics, written to the host."""

from __future__ import annotations

import os
import select
import threading
import time

from vmm.errors import BackendError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class ByteSink(Protocol):
        """Takes a device's output. Called with the device's lock held, from any thread; never blocks."""

        def write(self, data: bytes) -> bool:
            """Take *data*, all of it or (False) nothing; the sink's owner says when it is worth trying again."""


#: How much output may wait for a host that does not take it; beyond that the guest is made to wait.
OUTPUT_LIMIT = 64 << 10
#: How much of the past is kept.
TAIL_SIZE = 64 << 10
#: A longer line than this is not searched to its end.
LINE_LIMIT = 1024

_GATHER_S = 0.002


class HostWriter:
    """Writes to *fd* from a thread of its own, so that a host which does not read stops nobody else.

    Why a thread: a terminal or pipe that others share must not be made non-blocking (O_NONBLOCK belongs to the open
    file, so the user's shell would get it too), and a blocking write, even after poll, may block.

    The first byte after a pause is written at once, what follows within 2 ms in one go: a key's echo is prompt, and a
    boot log does not cost one write a byte. *drained* is called (in the writer's thread) when a refused `write` is
    worth trying again, *failed* when *fd* takes no more for good; from then on output is discarded.
    """

    def __init__(self, fd: int, where: str, failed: Callable[[BackendError], None] = lambda _error: None) -> None:
        self.fd = fd
        self.drained: Callable[[], None] = lambda: None
        self._where = where
        self._failed = failed
        self._buffer = bytearray()
        self._lock = threading.Lock()  # guards _buffer, _refused, _idle, _closing
        self._refused = False
        self._idle = False
        self._closing = False
        self._broken = False
        self._wake = threading.Lock()  # released once when the idle thread has something to do
        self._wake.acquire()
        # A daemon, because nothing ends a write to a host that never reads again.
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> bool:
        """Queue *data* if there is room for all of it. Any thread; never blocks."""
        with self._lock:
            if len(self._buffer) + len(data) > OUTPUT_LIMIT:
                self._refused = True
                return False
            self._buffer += data
            self._rouse()
            return True

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write what is queued and end the thread; whether that was possible within *timeout_s*."""
        with self._lock:
            self._closing = True
            self._rouse()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _rouse(self) -> None:
        if self._idle:
            self._idle = False
            self._wake.release()

    def _run(self) -> None:
        while True:
            with self._lock:
                chunk = bytes(self._buffer)
                self._buffer.clear()
                refused, self._refused = self._refused, False
                closing = self._closing
                self._idle = not chunk and not closing
            if refused:
                self.drained()
            if chunk:
                self._put(chunk)
                if not closing:
                    time.sleep(_GATHER_S)
            elif closing:
                return
            else:
                self._wake.acquire()

    def _put(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest and not self._broken:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:  # somebody else has made the shared open file non-blocking
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self._broken = True
                self._failed(
                    BackendError(
                        f"cannot write the guest's output: {error.strerror}",
                        where=self._where,
                        fix="the rest of the output is discarded",
                    )
                )


class ConsoleTail:
    """The last `TAIL_SIZE` bytes of what was fed, by any thread."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._listener: Callable[[bytes], None] | None = None
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        """Remember *data*."""
        with self._lock:
            self._bytes += data
            if len(self._bytes) > 2 * TAIL_SIZE:
                del self._bytes[:-TAIL_SIZE]
            if self._listener is not None:
                self._listener(data)

    def listen(self, listener: Callable[[bytes], None]) -> bytes:
        """Give *listener* all that is fed from now on, and the caller what is remembered.

        *listener* is called with the lock of the device that prints: it only makes a note.
        """
        with self._lock:
            self._listener = listener
            return bytes(self._bytes)

    def lines(self, count: int) -> list[str]:
        """The last *count* lines, without line ends; control characters but tabs shown as `?`."""
        text = self._bytes[-TAIL_SIZE:].decode("utf-8", "replace")
        printable = "".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else "?" for c in text)
        return printable.rstrip("\n").split("\n")[-count:] if printable.strip("\n") else []


class PanicWatch:
    """Finds the line in which a Linux kernel says that it has panicked.

    What counts is a whole line that *begins* with ``Kernel panic - not syncing:`` or with its last words
    ``---[ end Kernel panic - not syncing:``, after printk's time stamp and caller if they are on. The second form is
    for a first line that was printed behind a shell prompt. User space in the guest can print such a line as well:
    whoever has a pvpanic device that the guest uses should trust that more.
    """

    _MARK = b"Kernel panic - not syncing: "
    _END_MARK = b"---[ end " + _MARK

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> str | None:
        """The panic's message when *data* completes its line (the first, if there are several)."""
        *ended, rest = data.split(b"\n")
        message = None
        for end in ended:
            self._append(end)
            message = message or self._message(bytes(self._line))
            self._line.clear()
        self._append(rest)
        return message

    def _append(self, part: bytes) -> None:
        self._line += part[: max(0, LINE_LIMIT - len(self._line))]

    def _message(self, line: bytes) -> str | None:
        while line.startswith(b"["):  # "[    1.234567] " and, with CONFIG_PRINTK_CALLER, "[    T1] "
            inside, closed, rest = line[1:].partition(b"]")
            if not closed or not inside.strip().lstrip(b"TC").replace(b".", b"").isdigit():
                return None
            line = rest.lstrip(b" ")
        for mark, end in ((self._MARK, b""), (self._END_MARK, b" ]---")):
            if line.startswith(mark):
                return line[len(mark) :].strip().removesuffix(end).decode("utf-8", "replace")
        return None


class Console:
    """The host's end of a guest's console: a `ByteSink` over a `HostWriter` (None: all is discarded).

    Several may share a writer and a *tail*. `panicked` is called with the panic's message, each time one is printed,
    under the lock of the device that writes: it must only make a note or ask the loop.
    """

    def __init__(self, writer: HostWriter | None, *, tail: ConsoleTail | None = None) -> None:
        self.tail = tail or ConsoleTail()
        self._writer = writer
        self._panic_watch = PanicWatch()
        self.panicked: Callable[[str], None] = lambda _message: None

    def write(self, data: bytes) -> bool:
        """Take the guest's output *data*, all of it or (False) nothing."""
        if self._writer is not None and not self._writer.write(data):
            return False
        self.tail.feed(data)
        message = self._panic_watch.feed(data)
        if message is not None:
            self.panicked(message)
        return True

    def say(self, text: str) -> None:
        """Print the host's own *text* among the guest's output; lost if the host takes no more."""
        if self._writer is not None:
            self._writer.write(text.encode())  # a terminal's line ends are its own affair: see `RawMode`


def open_log(path: str) -> int:
    """Open *path* for a guest's serial output, created or emptied.

    Raises:
        ConfigError: it cannot be opened for writing.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}",
            where="--serial",
            fix="name a file in a directory you may write to",
        ) from error
