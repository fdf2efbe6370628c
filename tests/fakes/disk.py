"""A disk that forgets what was not flushed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.host.disk.raw import SECTOR, RawDisk

if TYPE_CHECKING:
    from collections.abc import Sequence


class DroppingDisk(RawDisk):
    """The raw image *path* with a volatile write cache: `cut` is a power failure.

    Killing a process proves nothing about flushes, as the host's page cache survives it; this does.
    """

    __slots__ = ("_cache", "_dead")

    def __init__(self, path: str, *, serial: str = "") -> None:
        super().__init__(path, serial=serial)
        self._cache: dict[int, bytes] = {}
        self._dead = False

    @property
    def unsynced_bytes(self) -> int:
        """How much a power failure would lose now."""
        return len(self._cache) * SECTOR

    def preadv(self, views: Sequence[memoryview], offset: int) -> None:
        size = sum(map(len, views))
        data = bytearray(size)
        super().preadv([memoryview(data)], offset)
        for at in range(0, size, SECTOR):
            cached = self._cache.get((offset + at) // SECTOR)
            if cached is not None:
                data[at : at + SECTOR] = cached
        done = 0
        for view in views:
            view[:] = data[done : done + len(view)]
            done += len(view)

    def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
        data = b"".join(views)
        for at in range(0, len(data), SECTOR):
            self._cache[(offset + at) // SECTOR] = data[at : at + SECTOR]

    def discard(self, offset: int, size: int) -> None:
        self.pwritev([memoryview(bytes(size))], offset)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self.pwritev([memoryview(bytes(size))], offset)

    def flush(self) -> None:
        if self._dead:
            return
        for sector, data in self._cache.items():
            super().pwritev([memoryview(data)], sector * SECTOR)
        self._cache.clear()
        super().flush()

    def cut(self) -> None:
        """The power fails: what was not flushed is gone, and nothing that comes later reaches the image."""
        self._cache.clear()
        self._dead = True
