"""A tap whose other end is a socket in the test."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence


class SocketQueue:
    """Frames, each a datagram with its 12-byte header, as `vmm.host.tap.TapQueue` has them.

    The test's side is `outside`: what it sends the guest receives.
    """

    def __init__(self) -> None:
        self.inside, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.inside, self.outside):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
        self.gone = False

    def fileno(self) -> int:
        return self.inside.fileno()

    def readv(self, views: Sequence[memoryview]) -> int:
        if self.gone:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        try:
            return self.inside.recvmsg_into(views)[0]
        except BlockingIOError:
            return 0

    def writev(self, views: Sequence[memoryview]) -> bool:
        try:
            return self.inside.sendmsg(views) > 0
        except OSError:
            return False

    def mend(self, code: int) -> str:
        raise BackendError(f"cannot read: {os.strerror(code)}", where="tap tap0", fix="was the device deleted?")

    def received(self) -> list[bytes]:
        """What the guest sent since the last call."""
        frames = []
        while True:
            try:
                frames.append(self.outside.recv(1 << 17))
            except BlockingIOError:
                return frames


class SocketTap(SocketQueue):
    """A tap as `vmm.host.tap.Tap`, with *pairs* queues, of which it is the first."""

    name = "tap0"
    kind = "tap"
    has_offloads = True

    def __init__(self, pairs: int = 1) -> None:
        super().__init__()
        self.queues: list[SocketQueue] = [self, *(SocketQueue() for _ in range(pairs - 1))]
        self.segments_udp = True
        self.offloads: list[int] = []
        self.enabled: list[int] = []

    def enable(self, count: int) -> None:
        if self.gone:
            raise BackendError("cannot use queues: File descriptor in bad state", where="tap tap0")
        self.enabled.append(count)

    def set_offload(self, flags: int) -> None:
        self.offloads.append(flags)

    def close(self) -> None:
        for queue in self.queues:
            queue.inside.close()
            queue.outside.close()
