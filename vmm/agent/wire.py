"""One connection to the agent, by its Unix socket: frames out and in, each before a deadline.

A frame is le32 size of the payload, le32 type, payload. The agent is the guest's and may be hostile: a frame is never
larger than `FRAME_MAX`, and nothing else that it says decides how much is read.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from vmm.errors import BackendError

VERSION = 1
PORT = 1023
FRAME_MAX = 64 << 10
_HEADER = struct.Struct("<II")
_ANSWER_MAX = len("OK 4294967295\n")
_RETRY_S = 0.05
_HOW_TO_GET_ONE = """\
the images of images/ have one; docs/agent.md tells how other guests get it
the VM needs a virtio-vsock device: pyvmm --vsock PATH"""


class Frame:
    """Types of frames (docs/agent.md)."""

    HELLO, EXEC, STDIN, SIGNAL, PUT, GET, DATA, END, TIME, RESEED, SYNC, RENEW = range(1, 13)
    OK, ERROR, STDOUT, STDERR, EXIT = range(32, 37)


class AgentError(BackendError):
    """The agent is not there, has gone away, or does not keep to the protocol."""


class AgentLost(AgentError):
    """It went away in mid-request: the guest has ended, or was restored."""


class AgentTimeout(AgentError, TimeoutError):
    """It did not answer in time."""


class AgentRefused(AgentError):
    """The guest cannot do what was asked: `errno` says why."""

    def __init__(self, what: str, errno: int) -> None:
        self.errno = errno
        super().__init__(f"{what}: {os.strerror(errno)}", where="in the guest")


class _NobodyListensError(Exception):
    pass


class Wire:
    """A connection to *port* of the guest behind the Unix socket *path*, until `close` or the end of a `with`.

    *request*, a frame, goes out with the wish for the connection: a guest that is slow to wake need wake only once.
    Where nobody listens it reaches nobody. An agent that is not there yet is waited for, until *patience* (of
    `time.monotonic`); no operation lasts beyond *deadline* (None: none). One thread's.

    Raises:
        AgentTimeout, AgentError: nobody answers.
    """

    def __init__(self, path: str, port: int, request: bytes, patience: float, deadline: float | None) -> None:
        self.deadline = deadline
        self._path = path
        self._received = bytearray()
        limit = patience if deadline is None else min(patience, deadline)
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._connect(port, request, limit)
            except _NobodyListensError:
                self._socket.close()
            except BaseException:
                self._socket.close()
                raise
            else:
                return
            if time.monotonic() + _RETRY_S > limit:
                raise AgentTimeout("no agent answers in the guest", where=path, fix=_HOW_TO_GET_ONE)
            time.sleep(_RETRY_S)

    def _connect(self, port: int, request: bytes, limit: float) -> None:
        self._socket.settimeout(max(0.001, limit - time.monotonic()))
        try:
            self._socket.connect(self._path)
            self._socket.sendall(b"CONNECT %d\n" % port + request)
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < _ANSWER_MAX:
                piece = self._socket.recv(1)
                if not piece:
                    raise _NobodyListensError
                answer += piece
        except TimeoutError:
            raise AgentTimeout("no agent answers in the guest", where=self._path, fix=_HOW_TO_GET_ONE) from None
        except (ConnectionResetError, BrokenPipeError, BlockingIOError) as error:  # the last: too many wait already
            raise _NobodyListensError from error
        except OSError as error:
            raise AgentError(f"cannot connect: {error.strerror}", where=self._path, fix=_HOW_TO_GET_ONE) from error
        if not answer.startswith(b"OK "):
            raise AgentError(f"answers {answer!r}", where=self._path, fix="this is not the socket of pyvmm --vsock")
        self._socket.setblocking(False)

    def __enter__(self) -> Wire:  # noqa: PYI034  typing costs start-up time
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the agent kills what it runs for it."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def send(self, kind: int, payload: bytes | memoryview = b"") -> None:
        """Send a frame. If the agent has gone away, what it said before that is there to be read.

        Raises:
            AgentTimeout: it cannot be sent in time.
        """
        rest = memoryview(frame(kind, payload))
        while rest := rest[self.send_some(rest) :]:
            self.wait(to_send=True)

    def send_some(self, data: memoryview) -> int:
        """Send of the frames in *data* what goes at once; how many bytes that was, all if the agent has gone away."""
        try:
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def wait(self, *also: int, to_send: bool = False) -> tuple[bool, bool, set[int]]:
        """Wait for something to be received, for room if there is something *to_send*, or for *also* to be readable.

        Whether there is the first, the second, and which of the third.

        Raises:
            AgentTimeout: none of them in time.
        """
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise AgentTimeout("did not answer in time", where=self._path)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if to_send else 0))
        for fd in also:
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(None if left is None else int(1000 * left) + 1))
        events = ready.get(self._socket.fileno(), 0)
        return bool(events & ~select.POLLOUT), bool(events & select.POLLOUT), set(also) & ready.keys()

    def is_quiet(self) -> bool:
        """Whether the agent says nothing now, not even that it goes away."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not self._received and not poll.poll(0)

    def receive(self) -> tuple[int, bytes]:
        """The next frame's type and payload.

        Raises:
            AgentTimeout, AgentError: there is none, or one that is too large.
        """
        while (received := self.received()) is None:
            self.wait()
            self.read()
        return received

    def read(self) -> None:
        """Take what has come, without waiting; `received` gives the frames.

        Raises:
            AgentLost: the agent has gone away.
        """
        try:
            data = self._socket.recv(FRAME_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise AgentLost("the agent has gone away", where=self._path, fix="the guest has ended or was restored")
        self._received += data

    def received(self) -> tuple[int, bytes] | None:
        """The next frame, if all of it has been read.

        Raises:
            AgentError: it is too large.
        """
        if len(self._received) < _HEADER.size:
            return None
        size, kind = _HEADER.unpack_from(self._received)
        if size > FRAME_MAX:
            raise AgentError(f"the agent sends a frame of {size} bytes", where=self._path)
        end = _HEADER.size + size
        if len(self._received) < end:
            return None
        payload = bytes(self._received[_HEADER.size : end])
        del self._received[:end]
        return kind, payload

    def expect(self, what: str, *kinds: int) -> tuple[int, bytes]:
        """The next frame's type, which is one of *kinds*, and payload. *what* was asked for.

        Raises:
            AgentRefused: it is an error instead.
            AgentTimeout, AgentError: it is something else, or does not come.
        """
        return self.check(*self.receive(), what, *kinds)

    def check(self, kind: int, payload: bytes, what: str, *kinds: int) -> tuple[int, bytes]:
        """This frame's type, which is one of *kinds*, and payload; raises as `expect`."""
        if kind == Frame.ERROR:
            raise AgentRefused(what, int.from_bytes(payload[:4], "little") & 0xFFF)
        if kind not in kinds:
            raise AgentError(f"the agent sends a frame of type {kind}, not {kinds}", where=self._path)
        return kind, payload


def frame(kind: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame, to be sent."""
    return _HEADER.pack(len(payload), kind) + payload
