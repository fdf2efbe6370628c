"""A guest's sockets on the host: Unix sockets, by the hybrid protocol that Firecracker's users know.

=====================  =============================================================================
host -> guest          connect to PATH, send ``CONNECT <port>\\n``, read ``OK <host port>\\n``; then the
                       stream is the guest's. The connection ends at once if nobody listens there.
guest -> host          a connection of the guest to *port* of CID 2 is one to ``PATH_<port>``
=====================  =============================================================================
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from vmm.errors import BackendError
from vmm.host.lock import locked

#: The Unix socket's name in a VM's own directory.
VSOCK = "vsock.sock"
#: Clients that may wait to be looked at: those of a guest that has not started its driver yet.
BACKLOG = 128
#: `sun_path` without its NUL, and without the longest `_<port>`.
PATH_MAX = 107 - len("_4294967295")
#: Firecracker's, which leaves room for spaces.
_LINE_MAX = 32


class VsockGate:
    """Listens at *path* for connections to the guest, and makes those of the guest to others.

    A socket that nobody listens at any more is replaced; ours is gone after `close`.

    Raises:
        BackendError: *path* is too long, in use, or cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if len(os.fsencode(path)) > PATH_MAX:
            raise BackendError(
                f"{path} is longer than the {PATH_MAX} bytes that a socket's path may have",
                where="--vsock",
                fix="a shorter path, such as one in /tmp or $XDG_RUNTIME_DIR",
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with locked(path):  # from the look at who listens there until we do
                self._bind()
        except OSError as error:
            self._socket.close()
            in_use = error.errno == errno.EADDRINUSE
            raise BackendError(
                f"{path} is in use" if in_use else f"cannot listen at {path}: {error.strerror}",
                where="--vsock",
                fix="another path" if in_use else "a path in a directory that you may write to",
            ) from error

    def _bind(self) -> None:
        try:
            self._socket.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(self.path):
                raise
            os.unlink(self.path)
            self._socket.bind(self.path)
        os.chmod(self.path, 0o600)  # nobody can connect before `listen`
        self._socket.listen(BACKLOG)
        self._file = os.stat(self.path)

    def fileno(self) -> int:
        """Readable when a client waits."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next client that waits; None if there is none."""
        try:
            client = self._socket.accept()[0]
        except OSError:  # none, or no more descriptors: it waits
            return None
        client.setblocking(False)
        return client

    def connect(self, port: int) -> socket.socket | None:
        """A connection to whoever listens at `PATH_<port>`; None if nobody does."""
        try:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no more descriptors
            return None
        try:
            server.connect(f"{self.path}_{port}")
        except OSError:
            server.close()
            return None
        return server

    def close(self) -> None:
        """Stop listening."""
        with suppress(FileNotFoundError), locked(self.path):
            if os.path.samestat(os.lstat(self.path), self._file):  # else it is another's by now
                os.unlink(self.path)
        self._socket.close()


def read_port(client: socket.socket) -> int | None:
    """The port that *client* asks for, and not a byte more of what it has sent.

    Raises:
        BlockingIOError: the line is not all there.
        ValueError: it is no ``CONNECT <port>``, or *client* is gone.
    """
    line, newline, _ = client.recv(_LINE_MAX, socket.MSG_PEEK).partition(b"\n")
    if not newline:
        if len(line) in (0, _LINE_MAX):
            raise ValueError
        raise BlockingIOError
    client.recv(len(line) + 1)
    word, digits = line.split()
    if word.upper() != b"CONNECT" or not digits.isdigit() or int(digits) > 0xFFFF_FFFF:
        raise ValueError
    return int(digits)


def _is_stale(path: str) -> bool:
    """Whether *path* is a socket that nobody listens at."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED
