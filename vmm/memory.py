"""Guest RAM: the one class that touches it, and the only holder of its host addresses."""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading

from vmm import layout
from vmm.errors import GuestMemoryError, HostError

_MAP_NORESERVE = 0x4000  # mmap(2); Python names it from 3.13 on
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GuestMemory:
    """RAM of *memory_bytes*, laid around the 32-bit hole.

    It is anonymous memory, or begins as the *memory_bytes* at *offset* of the file *fd*, which is never written to:
    pages come when they are first looked at, and the guest's changes are its own (mmap(2), MAP_PRIVATE).

    Every access names a guest-physical address and a size and is either wholly inside one RAM region or raises
    `GuestMemoryError`; nothing is clipped and nothing wraps. All methods may be called from any thread; the guest
    writes to the same bytes at any time, so a value that is checked must be read once.
    """

    def __init__(self, memory_bytes: int, fd: int = -1, offset: int = 0) -> None:
        self.memory_bytes = memory_bytes
        try:
            self._map = mmap.mmap(fd, memory_bytes, mmap.MAP_PRIVATE | _MAP_NORESERVE, offset=offset)
        except OSError as error:
            raise HostError(
                f"cannot map {memory_bytes >> 20} MiB of guest RAM: {error.strerror}",
                where="--memory",
                fix="ask for less memory",
            ) from error
        self._view = memoryview(self._map)
        self._barrier = threading.Lock()
        regions = layout.ram_regions(memory_bytes)
        self._low_end = regions[0][1]
        self._high_end = layout.ABOVE_4G + memory_bytes - self._low_end
        self._high_delta = layout.ABOVE_4G - self._low_end
        # SAFETY: the address is only handed to KVM as a memory slot, and the map outlives the VM (see close).
        anchor = ctypes.c_char.from_buffer(self._map)
        address = ctypes.addressof(anchor)
        del anchor
        #: Where all of it is, without the hole.
        self.host_address = address
        #: (gpa, size in bytes, host address) of each region, ascending.
        self.regions: tuple[tuple[int, int, int], ...] = tuple(
            (gpa, size, address + self._offset(gpa, size)) for gpa, size in regions
        )

    def _offset(self, gpa: int, size: int) -> int:
        end = gpa + size
        if 0 <= gpa <= end <= self._low_end:
            return gpa
        if layout.ABOVE_4G <= gpa <= end <= self._high_end:
            return gpa - self._high_delta
        raise GuestMemoryError(gpa, size)

    def contains(self, gpa: int, size: int) -> bool:
        """Whether the *size* bytes at *gpa* are all guest RAM (and in one region)."""
        end = gpa + size
        return 0 <= gpa <= end <= self._low_end or layout.ABOVE_4G <= gpa <= end <= self._high_end

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of *size* bytes."""
        offset = self._offset(gpa, size)
        return self._map[offset : offset + size]

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy *data* into the guest."""
        size = len(data)
        offset = self._offset(gpa, size)
        self._view[offset : offset + size] = data

    def view(self, gpa: int, size: int) -> memoryview:
        """The bytes themselves, writable, for `preadv`/`pwritev`; to be dropped before `close`."""
        offset = self._offset(gpa, size)
        return self._view[offset : offset + size]

    def load_u16(self, gpa: int) -> int:
        """The little-endian u16 at *gpa*; one load where *gpa* is aligned."""
        return int(_U16.unpack_from(self._view, self._offset(gpa, 2))[0])

    def load_u32(self, gpa: int) -> int:
        """The little-endian u32 at *gpa*."""
        return int(_U32.unpack_from(self._view, self._offset(gpa, 4))[0])

    def load_u64(self, gpa: int) -> int:
        """The little-endian u64 at *gpa*."""
        return int(_U64.unpack_from(self._view, self._offset(gpa, 8))[0])

    def store_u16(self, gpa: int, value: int) -> None:
        """Store *value* as a little-endian u16; one store where *gpa* is aligned."""
        offset = self._offset(gpa, 2)  # not pack_into, which stores a 0 first: a polling driver sees it
        self._view[offset : offset + 2] = _U16.pack(value)

    def store_u32(self, gpa: int, value: int) -> None:
        """Store *value* as a little-endian u32."""
        offset = self._offset(gpa, 4)
        self._view[offset : offset + 4] = _U32.pack(value)

    def store_u64(self, gpa: int, value: int) -> None:
        """Store *value* as a little-endian u64."""
        offset = self._offset(gpa, 8)
        self._view[offset : offset + 8] = _U64.pack(value)

    def fence(self) -> None:
        """A full memory barrier between this thread's earlier stores and its later loads.

        x86 orders everything but a store before a later load (Intel SDM 3A §9.2.3.4), which is just what the event
        index check of a virtqueue needs. Taking an uncontended lock is a locked compare-and-exchange: a full fence.
        """
        self._barrier.acquire()
        self._barrier.release()

    def close(self) -> None:
        """Unmap the RAM. Only after the VM's memory slots are gone (its fd closed)."""
        self._view.release()
        self._map.close()
