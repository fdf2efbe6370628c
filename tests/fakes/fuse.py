"""A file whose file system is a process of the test's: it sees what reaches the file, whichever way it was sent there.

System calls can be got between, but not what io_uring does in the kernel; that has to come out of it here. The protocol
is the kernel's (include/uapi/linux/fuse.h). Root is needed to mount it, on no path; so nothing stays behind, and as the
server is a process of its own that ends with the test's, nobody waits for it for ever.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Self

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # system calls, on x86-64
_SET_STRING, _CREATE = 1, 6
_CLOEXEC = 1

_GETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT = 3, 14, 15, 16, 18, 20, 25, 26
_UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_IN = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions
_OUT = struct.Struct("<IiQ")  # len, error, unique
_INIT_OUT = struct.Struct("<IIIIHHII32x")  # major, minor, max_readahead, flags, background (2), max_write, granularity
_ATTRIBUTES = struct.Struct("<QII6Q10I")  # valid (3); inode, size, blocks, times (3); nanoseconds (3), mode, …
_OPEN_OUT = struct.Struct("<QII")
_TRANSFER = struct.Struct("<QQIIQII")  # handle, offset, size, …
_WRITE_OUT = struct.Struct("<II")
_MAX_WRITE = 1 << 17

PATIENCE_S = 10.0


class Sync:
    """A sync that has come and waits to be answered; *thread* is the name of the one that sent it."""

    def __init__(self, server: Connection, unique: int, thread: str) -> None:
        self._server, self._unique = server, unique
        self.thread = thread

    def answer(self, error: int = 0) -> None:
        """Let it end, with *error*."""
        self._server.send((self._unique, error))


class FuseFile:
    """An open file of *size* zeroes, at `path`. `log` is what came: writes as (offset, data), syncs as None.

    Every sync waits until the test answers it; the kernel sends the next one then.
    """

    def __init__(self, size: int) -> None:
        self.log: list[tuple[int, bytes] | None] = []
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._mount = _mount(device)  # before there is a server: it could read nothing yet
            self._connection, other = Pipe()
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(device), str(other.fileno()), str(size)],
                pass_fds=(device, other.fileno()),
            )
            other.close()
        finally:
            os.close(device)
        self.path = f"/proc/self/fd/{self._mount}"

    def next_sync(self) -> Sync:
        """The next sync that comes.

        Raises:
            TimeoutError: none does.
        """
        while self._connection.poll(PATIENCE_S):
            kind, *what = self._connection.recv()
            self.log.append(None if kind == _FSYNC else (what[0], what[1]))
            if kind == _FSYNC:
                return Sync(self._connection, *what)
        raise TimeoutError

    def release(self) -> None:
        """Let all syncs end from now on."""
        self._connection.send(None)

    def close(self) -> None:
        """Unmount it."""
        self._connection.close()
        self._server.wait()
        os.close(self._mount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _mount(device: int) -> int:
    context = _syscall(_FSOPEN, b"fuse", _CLOEXEC)
    try:
        options = {"fd": device, "rootmode": f"{stat.S_IFREG | 0o600:o}", "user_id": 0, "group_id": 0}
        for name, value in options.items():
            _syscall(_FSCONFIG, context, _SET_STRING, name.encode(), str(value).encode(), 0)
        _syscall(_FSCONFIG, context, _CREATE, None, None, 0)
        return _syscall(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


class Server:
    """Answers the kernel on the descriptor *device*, until the *test* goes away."""

    def __init__(self, device: int, test: Connection, size: int) -> None:
        self._device, self._test = device, test
        self._content = bytearray(size)
        self._waiting: set[int] = set()
        self._released = False

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._test.fileno(), select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._device:
                    self._answer(os.read(fd, 2 * _MAX_WRITE))
                    continue
                try:
                    self._obey(self._test.recv())
                except EOFError:
                    return

    def _obey(self, order: tuple[int, int] | None) -> None:
        if order:
            unique, error = order
            self._waiting.remove(unique)
            self._reply(unique, error=error)
            return
        self._released = True
        while self._waiting:
            self._reply(self._waiting.pop())

    def _answer(self, request: bytes) -> None:
        _, kind, unique, _, _, _, pid, _, _ = _IN.unpack_from(request)
        body = request[_IN.size :]
        if kind == _INIT:
            self._reply(unique, _INIT_OUT.pack(7, 31, 0, 0, 16, 12, _MAX_WRITE, 1))
        elif kind == _GETATTR:
            size = len(self._content)
            times, rest = (0,) * 3, (stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)
            self._reply(unique, _ATTRIBUTES.pack(1, 0, 0, 1, size, size // 512, *times, *times, *rest))
        elif kind == _OPEN:
            self._reply(unique, _OPEN_OUT.pack(0, 0, 0))
        elif kind == _READ:
            _, offset, size, *_ = _TRANSFER.unpack_from(body)
            self._reply(unique, bytes(self._content[offset : offset + size]))
        elif kind == _WRITE:
            _, offset, size, *_ = _TRANSFER.unpack_from(body)
            data = body[_TRANSFER.size :]
            self._test.send((_WRITE, offset, data))
            self._content[offset : offset + size] = data
            self._reply(unique, _WRITE_OUT.pack(size, 0))
        elif kind == _FSYNC and not self._released:
            self._waiting.add(unique)
            with open(f"/proc/{pid}/comm") as name:
                self._test.send((_FSYNC, unique, name.read().strip()))
        elif kind not in _UNANSWERED:
            self._reply(unique, error=0 if kind in (_FLUSH, _RELEASE, _FSYNC) else errno.ENOSYS)

    def _reply(self, unique: int, body: bytes = b"", *, error: int = 0) -> None:
        os.write(self._device, _OUT.pack(_OUT.size + len(body), -error, unique) + body)


def missing_fuse() -> str:
    """Why there can be no `FuseFile`, or nothing."""
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "no /dev/fuse: load the module fuse"


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


if __name__ == "__main__":
    device_fd, test_fd, size_bytes = map(int, sys.argv[1:])
    Server(device_fd, Connection(test_fd), size_bytes).run()
