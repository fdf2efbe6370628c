"""What the agent in a guest can do for the host: run commands, move files, set the clock, renew random numbers."""

from __future__ import annotations

import errno
import math
import os
import time
from contextlib import ExitStack, contextmanager

from vmm.agent.wire import (
    FRAME_MAX,
    PORT,
    VERSION,
    AgentError,
    AgentLost,
    AgentRefused,
    AgentTimeout,
    Frame,
    Wire,
    frame,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import BinaryIO

__all__ = ["DISCARD", "ENVIRONMENT", "Agent", "AgentError", "AgentLost", "AgentRefused", "AgentTimeout", "Completed"]

#: What a command gets unless it is given something else.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "SHELL": "/bin/sh",
}
#: How long an agent that is not there yet is waited for.
PATIENCE_S = 10.0
#: The most of a command's output, and of a file, that is taken.
OUTPUT_MAX, FILE_MAX = 64 << 20, 4 << 30
#: An output nobody wants.
DISCARD = -1
#: A signal that cannot be sent on for so long ends the command by the end of its connection.
_STUCK_S = 5.0
_SEED_BYTES = 64
_NONCE_BYTES = 16
_SIGNALS_MAX = 16
_EXEC_STDIN = 1


class Completed:
    """How a command ended: *returncode* is its exit status, or minus the signal that killed it; and what it printed."""

    __slots__ = ("returncode", "stderr", "stdout")

    def __init__(self, returncode: int, stdout: bytes, stderr: bytes) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr

    def __repr__(self) -> str:
        return f"Completed({self.returncode}, {self.stdout!r}, {self.stderr!r})"


class Agent:
    """The agent at *port* of the guest whose virtio-vsock is the Unix socket *path*.

    Several threads may be at it at once. An operation's connection serves the next one too, which spares the guest a
    third of a greeting; `close` ends it. All operations wait up to *patience_s* for an agent that is not there yet, and
    for no longer than their own `timeout_s` (None: for ever).

    All raise `AgentTimeout`; `AgentError` if there is no agent; `AgentLost` if it goes away, which ends what it was
    doing; `AgentRefused` if the guest cannot do it.
    """

    def __init__(self, path: str, port: int = PORT, *, patience_s: float = PATIENCE_S) -> None:
        self._path, self._port, self._patience_s = path, port, patience_s
        #: Connections that nobody uses now: one, but for threads that end at the same time.
        self._idle: list[Wire] = []

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Keep no connection: the next operation makes one again."""
        while self._idle:
            self._idle.pop().close()

    def reconnect(self, timeout_s: float | None = 10.0) -> None:
        """Have a connection on which nothing was said yet, and no other: a restored guest keeps such a one."""
        self.close()
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        self._idle.append(Wire(self._path, self._port, b"", now + self._patience_s, deadline))

    @contextmanager
    def _request(self, kind: int, payload: bytes, timeout_s: float | None, *, last: bool = False) -> Iterator[Wire]:
        """A connection on which that request is made; the *last* on it, else only if it fails."""
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        with ExitStack() as failed:
            idle = self._idle_wire()
            wire = failed.enter_context(
                idle or Wire(self._path, self._port, frame(kind, payload), now + self._patience_s, deadline)
            )
            if idle:
                wire.deadline = deadline
                wire.send(kind, payload)
            yield wire
            if not last and not self._idle:
                self._idle.append(wire)
                failed.pop_all()

    def _idle_wire(self) -> Wire | None:
        try:
            wire = self._idle.pop()
        except IndexError:
            return None
        if wire.is_quiet():
            return wire
        wire.close()
        return None

    def _ask(self, what: str, kind: int, payload: bytes, timeout_s: float | None) -> bytes:
        """The payload of the OK that answers the request."""
        with self._request(kind, payload, timeout_s) as wire:
            return wire.expect(what, Frame.OK)[1]

    def hello(self, nonce: bytes = b"", timeout_s: float | None = 10.0) -> None:
        """The agent is there and answers: it repeats *nonce* (up to 64 bytes; else random ones), so it is not a replay.

        Raises:
            AgentError: another nonce, or another version of the protocol.
        """
        nonce = nonce or os.urandom(_NONCE_BYTES)
        answer = self._ask("hello", Frame.HELLO, nonce, timeout_s)
        if int.from_bytes(answer[:4], "little") != VERSION or answer[4:] != nonce:
            raise AgentError(
                f"the agent answers {answer!r}, not version {VERSION} and {nonce!r}",
                where=self._path,
                fix="an agent of this pyvmm: docs/agent.md",
            )

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stdin: bytes | int = b"",
        stdout: int | None = None,
        stderr: int | None = None,
        timeout_s: float | None = None,
        signals: int | None = None,
    ) -> Completed:
        """Run *argv* in the guest, as root, in a session of its own; how it ended.

        *env* is added to `ENVIRONMENT`. *stdin* is data, or a descriptor to read from. *stdout* and *stderr* are
        descriptors to write to as the output comes, `DISCARD`, or None: then it is in the result. What a background
        process prints after the command has ended is lost. After *timeout_s*, or when the connection ends, the command
        and its process group are killed. *signals* is a descriptor of signals to send to them, a byte for each: such
        as that of `signal.set_wakeup_fd`.

        Raises:
            AgentRefused: it printed more than `OUTPUT_MAX` for the result too.
        """
        strings = [cwd, *argv, *(f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items())]
        if not argv or any("\0" in text for text in strings):
            raise ValueError("a command is one word at least, and no text has a NUL in it")
        has_input = stdin != b""
        flags = _EXEC_STDIN if has_input else 0
        request = b"".join(
            (
                flags.to_bytes(4, "little"),
                len(argv).to_bytes(4, "little"),
                *(text.encode(errors="surrogateescape") + b"\0" for text in strings),
            )
        )
        if len(request) > FRAME_MAX:
            raise AgentRefused(argv[0], errno.E2BIG)
        with self._request(Frame.EXEC, request, timeout_s, last=has_input) as wire:  # it need not have read it all
            return _converse(wire, argv[0], stdin, {Frame.STDOUT: stdout, Frame.STDERR: stderr}, signals)

    def put(self, source: BinaryIO, path: str, mode: int = 0o644, timeout_s: float | None = None) -> None:
        """Copy *source* to the file *path* of the guest, which gets *mode* and appears whole or not at all."""
        with self._request(Frame.PUT, mode.to_bytes(4, "little") + os.fsencode(path) + b"\0", timeout_s) as wire:
            wire.expect(path, Frame.OK)
            while piece := source.read(FRAME_MAX):
                wire.send(Frame.DATA, piece)
            wire.send(Frame.END)
            wire.expect(path, Frame.OK)

    def get(self, path: str, target: BinaryIO, timeout_s: float | None = None, *, size_max: int = FILE_MAX) -> int:
        """Copy the file *path* of the guest to *target*; its mode.

        Raises:
            AgentRefused: it has more than *size_max* bytes too; so many are in *target* then.
        """
        with self._request(Frame.GET, os.fsencode(path) + b"\0", timeout_s) as wire:
            left = size_max
            while True:
                kind, payload = wire.expect(path, Frame.DATA, Frame.END)
                if kind == Frame.END:
                    return int.from_bytes(payload[:4], "little") & 0o7777
                target.write(payload[:left])
                left -= len(payload)
                if left < 0:
                    raise AgentRefused(f"{path} has more than {size_max} bytes", errno.EFBIG)

    def set_time(self, time_ns: int | None = None, timeout_s: float | None = 10.0) -> None:
        """Set the guest's wall clock to *time_ns* since the epoch; to the host's if it is None."""
        now = time.time_ns() if time_ns is None else time_ns
        self._ask("set the clock", Frame.TIME, now.to_bytes(8, "little"), timeout_s)

    def reseed(self, seed: bytes | None = None, timeout_s: float | None = 10.0) -> None:
        """Give the guest's kernel *seed* (else random bytes of the host) and make its random numbers depend on it."""
        self._ask("reseed", Frame.RESEED, seed or os.urandom(_SEED_BYTES), timeout_s)

    def renew(self, timeout_s: float | None = 10.0) -> None:
        """Both at once, `set_time` to now and `reseed`: for a guest that has just been restored."""
        payload = time.time_ns().to_bytes(8, "little") + os.urandom(_SEED_BYTES)
        self._ask("renew", Frame.RENEW, payload, timeout_s)

    def sync(self, timeout_s: float | None = 60.0) -> None:
        """Have the guest write to its disks what it has not yet."""
        self._ask("sync", Frame.SYNC, b"", timeout_s)

    def power_off(self, timeout_s: float | None = 10.0) -> bool:
        """Ask the guest to power off, by its command of that name; whether it is about to.

        It may still take its time, or fail.
        """
        try:
            return not self.run(["poweroff"], stdout=DISCARD, stderr=DISCARD, timeout_s=timeout_s).returncode
        except AgentLost:  # among the first to be ended
            return True
        except AgentError:
            return False


def _converse(
    wire: Wire, name: str, stdin: bytes | int, sinks: dict[int, int | None], signals: int | None
) -> Completed:
    """Carry a command's streams until its end."""
    captured = {kind: bytearray() for kind in sinks}
    feed = _Feed(stdin)
    deadline = wire.deadline
    while True:
        while (received := wire.received()) is not None:
            kind, payload = wire.check(*received, name, Frame.EXIT, *sinks)
            if kind == Frame.EXIT:
                status = int.from_bytes(payload[:4], "little")
                code = -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
                return Completed(code, *map(bytes, captured.values()))
            sink = sinks[kind]
            if sink is None:
                captured[kind] += payload
                if sum(map(len, captured.values())) > OUTPUT_MAX:
                    raise AgentRefused(f"{name} has printed more than {OUTPUT_MAX >> 20} MiB", errno.EFBIG)
            elif sink != DISCARD:
                _write(sink, payload)
        wanted = [fd for fd in (signals, feed.descriptor) if fd is not None]
        readable, room, ready = wire.wait(*wanted, to_send=bool(feed.frames))
        if readable:
            wire.read()
        if room:
            feed.frames = feed.frames[wire.send_some(feed.frames) :]
            if not feed.frames:
                wire.deadline = deadline
        if signals in ready:
            if feed.frames:  # behind input that may never be read: then the connection's end ends the command
                wire.deadline = min(wire.deadline or math.inf, time.monotonic() + _STUCK_S)
            feed.send_signals(os.read(wanted[0], _SIGNALS_MAX))
        if feed.descriptor in ready:
            feed.read()


class _Feed:
    """Frames to be sent to a command: never more of its input than one at a time, and signals between them."""

    def __init__(self, stdin: bytes | int) -> None:
        self.frames = memoryview(b"")
        self._descriptor = stdin if isinstance(stdin, int) else None
        if isinstance(stdin, bytes) and stdin:
            pieces = (stdin[at : at + FRAME_MAX] for at in range(0, len(stdin), FRAME_MAX))
            self.frames = memoryview(b"".join(frame(Frame.STDIN, piece) for piece in (*pieces, b"")))

    @property
    def descriptor(self) -> int | None:
        """What to read the next input from, when there is nothing to be sent."""
        return None if self.frames else self._descriptor

    def read(self) -> None:
        assert self._descriptor is not None
        data = os.read(self._descriptor, FRAME_MAX)
        if not data:
            self._descriptor = None
        self.frames = memoryview(frame(Frame.STDIN, data))

    def send_signals(self, numbers: bytes) -> None:
        sent = b"".join(frame(Frame.SIGNAL, bytes((number, 0, 0, 0))) for number in numbers)
        self.frames = memoryview(bytes(self.frames) + sent)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
