"""How a snapshot is written: beside the machine, by a child process that has the memory as it was when it began."""

from __future__ import annotations

import mmap
import os
import signal
import time
import zlib
from contextlib import ExitStack

from vmm import __version__
from vmm.errors import BackendError, ConfigError, HostError
from vmm.layout import PAGE
from vmm.snapshot import codec, values
from vmm.snapshot.disks import KeptDisks, remove
from vmm.snapshot.file import CHAIN_MAX, HEADER, MAGIC, MEMORY_AT, VERSION, Snapshot, bitmap_size, kept_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config import MachineConfig
    from vmm.memory import GuestMemory
    from vmm.state import State


class Writing:
    """A snapshot on its way to *path*: `take` while the machine stands, `finish` after that, then `close`.

    *began* is what the machine's memory began as. *parent* is what the snapshot shall build on: any other with as much
    memory, for the child compares with it whatever may be different, and nobody has to keep account of changes.

    Raises:
        ConfigError: *parent* cannot be.
        HostError: there can be no file; or *parent* cannot be read.
    """

    def __init__(
        self, path: str, config: MachineConfig, memory: GuestMemory, began: Snapshot | None, parent: str
    ) -> None:
        self._path, self._config, self._memory = path, config, memory
        self._directory, self._file = os.path.split(os.path.realpath(path))
        self._kept = KeptDisks(os.path.realpath(path))
        self._is_done = False
        self._state: State = {}
        self._child = 0
        self._held = ExitStack()
        try:
            self._open(began, parent)
        except BaseException:
            self._held.close()
            raise

    def _open(self, began: Snapshot | None, parent: str) -> None:
        #: Shared with the child: the checksum, then the bitmap, first of what it is to look at besides the pages that
        #: are this process's own, and in the end of what the file has.
        self._shared = self._held.enter_context(mmap.mmap(-1, 8 + bitmap_size(self._config)))
        self._parent, self._base = None, None
        known = [began] if began else []
        if parent:
            self._parent = self._opened(parent)
            self._base = self._parent.map()
            self._held.callback(self._base.close)
            known = [] if began and began.identity == self._parent.identity else [*known, self._parent]
        for snapshot in known:
            self._look_at(snapshot.pages)
        try:
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendError(f"cannot be made: {error.strerror}", where=self._path) from error
        self._held.callback(os.close, self._fd)

    def _opened(self, path: str) -> Snapshot:
        """The parent at *path*.

        Raises:
            ConfigError: it cannot be the parent.
        """
        parent = Snapshot(path)
        self._held.callback(parent.close)
        theirs, ours = parent.config.memory_bytes, self._config.memory_bytes
        if theirs != ours:
            raise ConfigError(f"has {theirs >> 20} MiB of memory, not {ours >> 20}", where=f"--parent {path}")
        if len(parent.paths) == CHAIN_MAX:
            raise ConfigError(
                f"builds on {CHAIN_MAX - 1} others",
                where=f"--parent {path}",
                fix="write a full one: leave --parent out",
            )
        if os.path.join(self._directory, self._file) in map(os.path.realpath, parent.paths):
            raise ConfigError("would be replaced, and is needed", where=f"--parent {path}", fix="choose another file")
        return parent

    def _look_at(self, pages: bytes) -> None:
        both = int.from_bytes(self._shared[8:], "little") | int.from_bytes(pages, "little")
        self._shared[8:] = both.to_bytes(len(pages), "little")

    def take(self, machine: State, disks: Sequence[object], *, overlays: bool) -> None:
        """The machine is *machine*, with the memory as it is now.

        What is on those *disks* that are thrown away at the end is kept, and with *overlays* what is on these too.

        Raises:
            ConfigError, HostError: a disk's file is gone or cannot be made, or there is no room for a child process.
        """
        from vmm.native._engine import ffi, lib

        config = values.absolute(self._kept.keep(self._config, disks, overlays=overlays))
        try:
            identities = [values.disk_identity(disk.path) for disk in config.disks]
        except OSError as error:
            raise BackendError(f"is gone: {error.strerror}", where=str(error.filename)) from error
        host, base = (ffi.cast("void *", memory.host_address if memory else 0) for memory in (self._memory, self._base))
        pages = self._memory.memory_bytes // PAGE
        self._state = {
            "pyvmm": __version__,
            "config": values.plain(config),
            "disks": identities,
            "kept": self._kept.names,
            "machine": machine,
        }
        shared = ffi.from_buffer("uint8_t[]", self._shared)
        self._child = lib.pages_write_apart(
            self._fd, MEMORY_AT, host, base, pages, shared + 8, ffi.cast("uint64_t *", shared)
        )
        ffi.release(shared)
        if self._child < 0:
            raise HostError(f"cannot fork: {os.strerror(-self._child)}")

    def finish(self) -> None:
        """Bring everything to the file, and the file to its name.

        Raises:
            BackendError: the host cannot; what was there is still there.
        """
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            name = signal.Signals(-code).name
            raise BackendError(f"cannot be written: {name} has ended the process that writes it", where=self._path)
        try:
            if code:
                raise OSError(code, os.strerror(code))
            self._write_state()
            self._kept.sync()
            os.fsync(self._fd)
            replaced = kept_at(self._path)
            self._name()
            self._is_done = True
            remove(os.path.realpath(self._path), replaced)
        except OSError as error:
            raise BackendError(f"cannot be written: {error.strerror}", where=self._path) from error

    def _write_state(self) -> None:
        stamp_ns = time.time_ns()
        data = codec.encode(
            self._state
            | {
                "stamp_ns": stamp_ns,
                "sum": int.from_bytes(self._shared[:8], "little"),
                "pages": self._shared[8:],
                "parent": self._parent and self._named(self._parent),
            }
        )
        offset = MEMORY_AT + self._memory.memory_bytes
        _write(self._fd, data, offset)
        _write(self._fd, HEADER.pack(MAGIC, VERSION, zlib.crc32(data), offset, len(data)), 0)
        os.utime(self._fd, ns=(stamp_ns, stamp_ns))

    def _named(self, parent: Snapshot) -> list[object]:
        """*parent*, as its child finds it: both may move together."""
        return [os.path.relpath(os.path.realpath(parent.path), self._directory), parent.identity]

    def _name(self) -> None:
        """Give the file its name, in one step: until then it has none, and goes if this process does."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        new = f".{self._file}.{os.getpid()}.{self._fd}"
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

    def close(self) -> None:
        """Let go of everything, finished or not."""
        if not self._is_done:
            self._kept.drop()
        if self._child > 0:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._held.close()


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
