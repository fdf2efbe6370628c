"""A tap whose other end is a socket in the test."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence


class SocketTap:
    """Frames, each a datagram with its 12-byte header, as `vmm.host.tap.Tap` has them.

    The test's side is `outside`: what it sends the guest receives.
    """

    def __init__(self) -> None:
        self._inside, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._inside, self.outside):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
        self.offloads: list[int] = []
        self.gone = False

    def fileno(self) -> int:
        return self._inside.fileno()

    def readv(self, views: Sequence[memoryview]) -> int:
        if self.gone:
            raise BackendError("cannot read: File descriptor in bad state", where="tap tap0")
        try:
            return self._inside.recvmsg_into(views)[0]
        except BlockingIOError:
            return 0

    def writev(self, views: Sequence[memoryview]) -> bool:
        try:
            return self._inside.sendmsg(views) > 0
        except OSError:
            return False

    def set_offload(self, flags: int) -> None:
        self.offloads.append(flags)

    def received(self) -> list[bytes]:
        """What the guest sent since the last call."""
        frames = []
        while True:
            try:
                frames.append(self.outside.recv(1 << 17))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        self._inside.close()
        self.outside.close()
