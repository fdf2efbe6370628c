"""A snapshot is one file: how it is written, and what is refused when it is read.

=============  ==========  ==================================================================
offset         size        field
=============  ==========  ==================================================================
0              16          "pyvmm snapshot\\n\\0"
16             le32        version of this format
20             le32        CRC-32 of the state
24             le64        offset of the state in bytes
32             le64        size of the state in bytes
4096           memory      guest RAM without the hole; pages of zeroes are holes
after that     state       plain values (`vmm.snapshot.codec`)
=============  ==========  ==================================================================

The memory has a checksum too, but to verify it is to read it all, where a machine that goes on reads only what it
needs. So the file bears a time stamp that is in the state too: while it does, nobody has written to it since, and the
memory is believed. A copy with another time is read as a whole.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
import zlib

from vmm import __version__
from vmm.errors import BackendError, ConfigError, GuestFault, HostError, VmmError
from vmm.memory import GuestMemory
from vmm.snapshot import codec, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config import MachineConfig
    from vmm.state import State

VERSION = 1
_MAGIC = b"pyvmm snapshot\n\0"
_HEADER = struct.Struct("<16sIIQQ")
_MEMORY_AT = 4096
_PAGE = 4096
_STATE_MAX = 256 << 20


class Snapshot:
    """The snapshot in the file *path*, believed as far as that can be told without this host's KVM.

    Raises:
        ConfigError: there is none, or it is of another version.
        BackendError: it cannot be read, or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot be opened: {error.strerror}", where=path) from error
        try:
            state = self._read_state()
            #: All of the machine but its memory, as `Machine.snapshot` told it.
            self.machine: State = state["machine"]
            self.config = values.config(state["config"])
            self.disks: list[list[int]] = state["disks"]
            self._stamp_ns, self._sum = int(state["stamp_ns"]), int(state["sum"])
        except OSError as error:
            os.close(self._fd)
            raise BackendError(f"cannot be read: {error.strerror}", where=path) from error
        except (KeyError, TypeError, ValueError) as error:
            os.close(self._fd)
            raise BackendError(f"is damaged: {error}", where=path) from error
        except VmmError:
            os.close(self._fd)
            raise

    def _read_state(self) -> State:
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ConfigError("is no snapshot of pyvmm", where=self.path)
        _, version, crc, offset, size = _HEADER.unpack(header)
        if version != VERSION:
            raise ConfigError(f"is a snapshot of version {version}, not {VERSION}", where=self.path)
        there = os.fstat(self._fd).st_size
        if size > _STATE_MAX or there < offset + size:
            raise ValueError(f"it has {there} bytes, not {offset + size}")
        data = os.pread(self._fd, size, offset)
        if zlib.crc32(data) != crc:
            raise ValueError("the checksum of its state is wrong")
        state: State = codec.decode(data)
        if state["pyvmm"] != __version__:
            raise ConfigError(f"is a snapshot of pyvmm {state['pyvmm']}, not {__version__}", where=self.path)
        if offset != _MEMORY_AT + values.config(state["config"]).memory_bytes:
            raise ValueError("its memory has another size")
        return state

    def check_disks(self, config: MachineConfig) -> None:
        """Refuse the disks of *config* if they are not what they were.

        Raises:
            ConfigError: a disk is another one, or was written to since.
        """
        for disk, then, before in zip(config.disks, self.disks, self.config.disks, strict=True):
            now = values.disk_identity(disk.path)
            if now[0] != then[0] or (disk.path == before.path and now != then):
                raise ConfigError(
                    f"has changed since the snapshot {self.path}",
                    where=disk.path,
                    fix="give a copy as it was then: --disk",
                )

    def map(self) -> GuestMemory:
        """The memory, whose changes are the new machine's own.

        Raises:
            HostError: it is damaged, or cannot be mapped.
        """
        memory = GuestMemory(self.config.memory_bytes, self._fd, _MEMORY_AT)
        if os.fstat(self._fd).st_mtime_ns != self._stamp_ns:
            from vmm.native._engine import ffi, lib

            host = ffi.cast("void *", memory.host_address)
            if lib.pages_sum(host, memory.memory_bytes // _PAGE) != self._sum:
                memory.close()
                raise BackendError("is damaged: the checksum of its memory is wrong", where=self.path)
        return memory

    def used_by(self, restore: Callable[[State], None]) -> None:
        """Let *restore* make a machine what the snapshot says.

        Raises:
            HostError: it cannot be here, and why.
        """
        try:
            restore(self.machine)
        except HostError as error:
            raise HostError(f"cannot go on here: {error}", where=self.path) from error
        except (KeyError, TypeError, ValueError, OverflowError, struct.error, GuestFault) as error:
            raise BackendError(f"is damaged or does not fit this machine: {error}", where=self.path) from error

    def close(self) -> None:
        """Let go of the file; what is mapped of it stays."""
        os.close(self._fd)


class Writing:
    """A snapshot on its way to *path*: `take` while the machine stands, `finish` after that, then `close`."""

    def __init__(self, path: str, config: MachineConfig, memory: GuestMemory) -> None:
        self._path, self._config, self._memory = path, config, memory
        for disk in config.disks:
            if disk.snapshot:
                raise ConfigError(
                    "is thrown away at the end: no machine can go on with it", where=f"--disk {disk.path}"
                )
        self._directory, self._file = os.path.split(os.path.abspath(path))
        self._state: State = {}
        self._child = 0
        pages = memory.memory_bytes // _PAGE
        #: Shared with the child that writes: the checksum, then the bitmap of what it shall write.
        self._shared = mmap.mmap(-1, 8 + (pages + 7) // 8)
        try:
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendError(f"cannot be made: {error.strerror}", where=path) from error

    def take(self, machine: State) -> None:
        """The machine is *machine*, with the memory as it is now.

        Raises:
            HostError: the host has no room for a child process.
        """
        from vmm.native._engine import ffi, lib

        memory = self._memory
        host, pages = ffi.cast("void *", memory.host_address), memory.memory_bytes // _PAGE
        shared = ffi.from_buffer("uint8_t[]", self._shared)
        if memory.begins_as_file:
            self._shared[8:] = b"\xff" * (len(self._shared) - 8)
        elif code := lib.pages_touched(host, pages, shared + 8):
            raise BackendError(f"cannot be read: {os.strerror(code)}", where="/proc/self/pagemap")
        self._state = {
            "pyvmm": __version__,
            "config": values.plain(self._config),
            "disks": [values.disk_identity(disk.path) for disk in self._config.disks],
            "machine": machine,
        }
        self._child = lib.pages_write_apart(
            self._fd, _MEMORY_AT, host, pages, shared + 8, ffi.cast("uint64_t *", shared)
        )
        ffi.release(shared)
        if self._child < 0:
            raise HostError(f"cannot fork: {os.strerror(-self._child)}")

    def finish(self) -> None:
        """Bring everything to the file, and the file to its name.

        Raises:
            BackendError: the host cannot; what was there is still there.
        """
        try:
            _, status = os.waitpid(self._child, 0)
            self._child = 0
            code = os.waitstatus_to_exitcode(status)
            if code:
                raise OSError(code if code > 0 else errno.EINTR, os.strerror(code if code > 0 else errno.EINTR))
            self._write_state()
            os.fsync(self._fd)
            self._name()
        except OSError as error:
            raise BackendError(f"cannot be written: {error.strerror}", where=self._path) from error

    def _name(self) -> None:
        """Give the file its name, in one step: until then it has none, and goes if this process does."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        new = f".{self._file}.{os.getpid()}"
        try:
            os.link(f"/proc/self/fd/{self._fd}", new, dst_dir_fd=directory, follow_symlinks=True)
            try:
                os.replace(new, self._file, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.unlink(new, dir_fd=directory)
                raise
            os.fsync(directory)
        finally:
            os.close(directory)

    def _write_state(self) -> None:
        stamp_ns = time.time_ns()
        total = int.from_bytes(self._shared[:8], "little")
        data = codec.encode(self._state | {"stamp_ns": stamp_ns, "sum": total})
        offset = _MEMORY_AT + self._memory.memory_bytes
        _write(self._fd, data, offset)
        _write(self._fd, _HEADER.pack(_MAGIC, VERSION, zlib.crc32(data), offset, len(data)), 0)
        os.utime(self._fd, ns=(stamp_ns, stamp_ns))

    def close(self) -> None:
        """Let go of everything, finished or not."""
        if self._child > 0:
            import signal

            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        os.close(self._fd)
        self._shared.close()


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
