"""Other processes that a card is plugged into by a socket, in place of a tap: what they have in common.

For the card a frame has a `struct virtio_net_hdr` of `HEADER_SIZE` bytes before it, as on a tap. On a packet socket
that is what a message is. On a stream a frame is its length (big-endian, 32 bits) and then itself, without a header.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time

from vmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADER_SIZE = 12
FRAME_MIN, FRAME_MAX = 14, 65535 + 18
_LENGTH = struct.Struct(">I")
_NO_HEADER = bytes(HEADER_SIZE)
#: A reader that holds up a half-written frame for so long is given up.
_STALL_MS = 1000
#: What is lost so soon after it was opened is not opened again at once.
_LIFE_MIN_S = 1.0


class Uplink:
    """One queue on the socket that *connect* opens: it is called again when the other side is lost.

    The card must do everything itself: nothing behind a socket completes checksums or cuts segments.
    One thread at a time reads, one writes.
    """

    kind = "packets"
    has_offloads = segments_udp = False

    def __init__(self, name: str, mtu: int, connect: Callable[[], socket.socket]) -> None:
        self.name = name
        #: The largest payload of a frame, in bytes: what the guest is to be told.
        self.mtu = mtu
        self._connect = connect
        self._socket = connect()
        self._socket.setblocking(False)
        self._opened_s = time.monotonic()

    @property
    def queues(self) -> tuple[Uplink]:
        """The only one."""
        return (self,)

    def fileno(self) -> int:
        """The descriptor; readable when a frame waits. It stays the same over `mend`."""
        return self._socket.fileno()

    def readv(self, views: Sequence[memoryview]) -> int:
        """Take the next frame, header first, into *views*; what does not fit is cut off. Never blocks.

        Returns its size in bytes, or 0 if none waits.

        Raises:
            OSError: the other side is lost: `mend` it.
        """
        try:
            size = self._socket.recvmsg_into(views)[0]
        except BlockingIOError:
            return 0
        if not size:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return size

    def writev(self, views: Sequence[memoryview]) -> bool | None:
        """Send the frame in *views*, header first. Never blocks.

        Returns whether it was taken; None: there is no room now, try again soon.
        """
        try:
            self._socket.sendmsg(views)
        except BlockingIOError:
            return None
        except OSError:
            return False
        return True

    def mend(self, code: int) -> str:
        """Reading failed with the errno *code*: connect anew, by the same descriptor; what happened, to tell the user.

        Nobody waits for the descriptor meanwhile.

        Raises:
            BackendError: that did not help, or cannot be done.
        """
        what = f"the other side is lost ({os.strerror(code)})"
        if time.monotonic() - self._opened_s < _LIFE_MIN_S:
            raise BackendError(f"{what} as soon as it was there", where=self.name)
        with self._connect() as fresh:
            fresh.setblocking(False)
            os.dup2(fresh.fileno(), self._socket.fileno(), inheritable=False)
        self._opened_s = time.monotonic()
        return f"{self.name}: {what}; connected again"

    def enable(self, count: int) -> None:
        """Use the first *count* queues: there is one."""

    def set_offload(self, flags: int) -> None:
        """There is none."""

    def close(self) -> None:
        """Let go of the other side."""
        self._socket.close()


class StreamUplink(Uplink):
    """An `Uplink` on a stream.

    What has come of a frame is kept here, or the event loop would be woken again and again until the rest is there.
    """

    kind = "stream"

    def __init__(self, name: str, mtu: int, connect: Callable[[], socket.socket]) -> None:
        super().__init__(name, mtu, connect)
        self._kept = bytearray()

    def readv(self, views: Sequence[memoryview]) -> int:
        """As `Uplink.readv`."""
        if not self._keep(_LENGTH.size):
            return 0
        size = _LENGTH.unpack_from(self._kept)[0]
        if not FRAME_MIN <= size <= FRAME_MAX:
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        if not self._keep(_LENGTH.size + size):
            return 0
        frame = self._kept[_LENGTH.size :]
        self._kept.clear()
        return _scatter(views, _NO_HEADER + frame)

    def mend(self, code: int) -> str:
        """As `Uplink.mend`."""
        told = super().mend(code)
        self._kept.clear()
        return told

    def writev(self, views: Sequence[memoryview]) -> bool | None:
        """As `Uplink.writev`; a frame that was taken in part is waited for, a second at most."""
        frame = b"".join(views)[HEADER_SIZE:]
        rest = memoryview(_LENGTH.pack(len(frame)) + frame)
        try:
            rest = rest[self._socket.send(rest) :]
            while rest:
                if not select.select([], [self._socket], [], _STALL_MS / 1000)[1]:
                    raise TimeoutError
                rest = rest[self._socket.send(rest) :]
        except BlockingIOError:
            if len(rest) == _LENGTH.size + len(frame):
                return None
            return self._give_up()
        except OSError:
            return self._give_up()
        return True

    def _give_up(self) -> bool:
        """Half a frame would make nonsense of all that follows: so end the stream."""
        with contextlib.suppress(OSError):  # it may have ended
            self._socket.shutdown(socket.SHUT_RDWR)
        return False

    def _keep(self, size: int) -> bool:
        """Whether *size* bytes of the next frame are there; they are kept."""
        while len(self._kept) < size:
            try:
                data = self._socket.recv(size - len(self._kept))
            except BlockingIOError:
                return False
            if not data:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self._kept += data
        return True


def _scatter(views: Sequence[memoryview], data: bytes) -> int:
    at = 0
    for view in views:
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return at
