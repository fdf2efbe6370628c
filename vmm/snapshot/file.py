"""A snapshot is one file, or one and those that it builds on: what is in it, and what is refused when it is read.

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

`pages` in the state is a bitmap: of a full snapshot's memory what may be something else than zeroes; of an incremental
one's, all that is not as in its parent, which it names. Nothing else is in its file.

The memory has a checksum too, but to verify it is to read it all, where a machine that goes on reads only what it
needs. So the file bears a time stamp that is in the state too: while it does, nobody has written to it since, and the
memory is believed. A copy with another time is read as a whole.
"""

from __future__ import annotations

import os
import struct
import zlib

from vmm import __version__
from vmm.errors import BackendError, ConfigError, GuestFault, HostError, VmmError
from vmm.layout import PAGE
from vmm.memory import GuestMemory
from vmm.snapshot import codec, values
from vmm.snapshot.disks import with_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config import MachineConfig
    from vmm.state import State

VERSION = 3
MAGIC = b"pyvmm snapshot\n\0"
HEADER = struct.Struct("<16sIIQQ")
MEMORY_AT = 4096
#: Files that build on each other: each adds mappings, of which a process may have only so many.
CHAIN_MAX = 16
_STATE_MAX = 256 << 20
_COPY = "give a copy as it was then: --disk"


class File:
    """One file of a snapshot, at *path*; *where* is what messages call it.

    Raises:
        ConfigError: there is none, or it is of another version.
        BackendError: it cannot be read, or is damaged.
    """

    def __init__(self, path: str, where: str) -> None:
        self.path, self.where = path, where
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"cannot be opened: {error.strerror}", where=where) from error
        try:
            self._read()
        except OSError as error:
            self.close()
            raise BackendError(f"cannot be read: {error.strerror}", where=where) from error
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise BackendError(f"is damaged: {error}", where=where) from error
        except VmmError:
            self.close()
            raise

    def _read(self) -> None:
        state, memory_end = self._read_state()
        self.machine: State = state["machine"]
        #: The files of disks that are kept with it.
        self.kept: list[str] = state["kept"]
        self.config = values.config(state["config"])
        if any(self.kept):
            self.config = with_files(self.config, self.kept, os.path.realpath(self.path))
        self.disks: list[list[int]] = state["disks"]
        #: When it was written, and the checksum of the memory in it.
        self.identity = [int(state["stamp_ns"]), int(state["sum"])]
        self.pages: bytes = state["pages"]
        self.parent_path, self.parent_identity = "", []
        if state["parent"] is not None:
            self.parent_path, self.parent_identity = state["parent"]
        sizes = memory_end - MEMORY_AT, len(self.pages)
        if type(self.pages) is not bytes or sizes != (self.config.memory_bytes, bitmap_size(self.config)):
            raise ValueError("its memory has another size")

    def _read_state(self) -> tuple[State, int]:
        """The state, and where it begins, which is where the memory ends."""
        header = os.pread(self._fd, HEADER.size, 0)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ConfigError("is no snapshot of pyvmm", where=self.where)
        _, version, crc, offset, size = HEADER.unpack(header)
        if version != VERSION:
            raise ConfigError(f"is a snapshot of version {version}, not {VERSION}", where=self.where)
        there = os.fstat(self._fd).st_size
        if size > _STATE_MAX or there < offset + size:
            raise ValueError(f"it has {there} bytes, not {offset + size}")
        data = os.pread(self._fd, size, offset)
        if zlib.crc32(data) != crc:
            raise ValueError("the checksum of its state is wrong")
        state: State = codec.decode(data)
        if state["pyvmm"] != __version__:
            raise ConfigError(f"is a snapshot of pyvmm {state['pyvmm']}, not {__version__}", where=self.where)
        return state, offset

    def memory(self) -> GuestMemory:
        """All memory of the file, which is a full snapshot's.

        Raises:
            HostError: it is damaged, or cannot be mapped.
        """
        memory = GuestMemory(self.config.memory_bytes, self._fd, MEMORY_AT)
        try:
            self._verify(memory, every_page=True)
        except BaseException:
            memory.close()
            raise
        return memory

    def lay_over(self, memory: GuestMemory) -> None:
        """Change the parent's *memory* to that of this file, which is an incremental snapshot's.

        Raises:
            HostError: it is damaged, or cannot be mapped.
        """
        from vmm.native._engine import ffi, lib

        host, count = ffi.cast("void *", memory.host_address), memory.memory_bytes // PAGE
        if code := lib.pages_map(self._fd, MEMORY_AT, host, count, ffi.from_buffer("uint8_t[]", self.pages)):
            raise BackendError(f"cannot be mapped: {os.strerror(code)}", where=self.where)
        self._verify(memory)

    def _verify(self, memory: GuestMemory, *, every_page: bool = False) -> None:
        stamp_ns, total = self.identity
        if os.fstat(self._fd).st_mtime_ns == stamp_ns:
            return
        from vmm.native._engine import ffi, lib

        host, count = ffi.cast("void *", memory.host_address), memory.memory_bytes // PAGE
        which = ffi.NULL if every_page else ffi.from_buffer("uint8_t[]", self.pages)
        if lib.pages_sum(host, count, which) != total:
            raise BackendError("is damaged: the checksum of its memory is wrong", where=self.where)

    def close(self) -> None:
        """Let go of the file; what is mapped of it stays."""
        os.close(self._fd)


def kept_at(path: str) -> list[str]:
    """The files of disks that are kept with the snapshot *path*, if there is one."""
    try:
        file = File(path, path)
    except VmmError:
        return []
    file.close()
    return file.kept


class Snapshot:
    """The snapshot in the file *path* and in those that it builds on, believed as far as can be told without KVM.

    Raises:
        ConfigError: one of them is missing, of another version, or not the one that the next was made from.
        BackendError: one of them cannot be read, or is damaged.
    """

    def __init__(self, path: str, *, prefault: bool = False) -> None:
        self.path, self._prefault = path, prefault
        #: Whether the guest's agent will be told the time, and that it is in a copy: then its clock goes on from where
        #: it stood, and nothing is due at once for all the time since.
        self.told = False
        file = File(path, path)
        #: All of the machine but its memory, as `Machine.snapshot` told it.
        self.machine = file.machine
        self.config = file.config
        self.disks = file.disks
        self.identity = file.identity
        #: The full one first.
        self._files = [file]
        try:
            while self._files[0].parent_path:
                self._files.insert(0, self._parent(self._files[0]))
        except BaseException:
            self.close()
            raise

    def _parent(self, child: File) -> File:
        if len(self._files) == CHAIN_MAX:
            raise ConfigError(f"builds on more than {CHAIN_MAX - 1} others", where=self.path)
        path = os.path.join(os.path.dirname(os.path.realpath(child.path)), child.parent_path)
        parent = File(os.path.normpath(path), f"{self.path}: its parent {os.path.normpath(path)}")
        if parent.identity != child.parent_identity or parent.config.memory_bytes != child.config.memory_bytes:
            parent.close()
            raise ConfigError(f"is not the snapshot that {child.path} was made from", where=parent.where)
        return parent

    @property
    def paths(self) -> list[str]:
        """The files that it is made of."""
        return [file.path for file in self._files]

    @property
    def pages(self) -> bytes:
        """The bitmap of the pages that may be something else than zeroes."""
        pages = 0
        for file in self._files:
            pages |= int.from_bytes(file.pages, "little")
        return pages.to_bytes(bitmap_size(self.config), "little")

    def check_disks(self, config: MachineConfig) -> None:
        """Refuse the disks of *config* if they are not what they were.

        Raises:
            ConfigError: a disk is missing or another one, or was written to since.
        """
        for disk, then, before in zip(config.disks, self.disks, self.config.disks, strict=True):
            # An overlay over what was none may still have to be made.
            path = disk.path if before.overlay else disk.base or disk.path
            try:
                now = values.disk_identity(path)
            except OSError as error:
                why = f"of the snapshot {self.path}: {error.strerror}"
                raise ConfigError(why, where=path, fix=_COPY) from error
            if now[0] != then[0] or (path == before.path and now != then):
                raise ConfigError(f"has changed since the snapshot {self.path}", where=path, fix=_COPY)

    def map(self) -> GuestMemory:
        """The memory, whose changes are the new machine's own.

        Raises:
            HostError: it is damaged, or cannot be mapped.
        """
        full, *others = self._files
        memory = full.memory()
        try:
            for file in others:
                file.lay_over(memory)
            if self._prefault:
                self._fetch(memory)
        except BaseException:
            memory.close()
            raise
        return memory

    def _fetch(self, memory: GuestMemory) -> None:
        from vmm.native._engine import ffi, lib

        host, count = ffi.cast("void *", memory.host_address), memory.memory_bytes // PAGE
        if code := lib.pages_fetch(host, count, ffi.from_buffer("uint8_t[]", self.pages)):
            raise BackendError(f"cannot be read: {os.strerror(code)}", where=self.path, fix="leave --prefault out")

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
        """Let go of the files; what is mapped of them stays."""
        for file in self._files:
            file.close()


def bitmap_size(config: MachineConfig) -> int:
    """Of a bitmap of the memory of *config*, in bytes."""
    return (config.memory_bytes // PAGE + 7) // 8
