"""Plain registers: what the vCPU threads answer in C, without Python and its lock."""

from __future__ import annotations

import threading

from vmm.native._engine import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from vmm.bus import Bus


class PlainRegisters:
    """The plain registers on a machine's two buses, kept up to date as devices come and go. Any thread."""

    def __init__(self, pio: Bus, mmio: Bus) -> None:
        self._buses = (pio, mmio)
        self._plains = ffi.gc(lib.plains_open(), lib.plains_close)
        if not self._plains:
            raise MemoryError
        self._refreshing = threading.Lock()
        self._refresh()
        pio.changed = mmio.changed = self._refresh

    def _refresh(self) -> None:
        with self._refreshing:
            self._replace()

    def _replace(self) -> None:
        parts = [bus.plain_registers() for bus in self._buses]
        rows = [row for part in parts for row in part]
        registers = ffi.new("struct plain[]", len(rows))
        buffers = []
        for entry, (address, register) in zip(registers, rows, strict=True):
            storage, counter = ffi.from_buffer("uint8_t[]", register.storage), register.accesses
            buffers += [storage, ffi.from_buffer("uint64_t[]", counter)]
            entry.address, entry.size, entry.width = address, len(storage), register.width
            entry.bytes, entry.accesses, entry.writable = storage, buffers[-1], register.writable
        lib.plains_replace(self._plains, registers, *map(len, parts))
        # SAFETY: C keeps the addresses of the buffers until the next replacement, and so do we.
        self._buffers = buffers

    def runner(self, fd: int, run: mmap) -> Callable[[], int]:
        """What runs the vCPU *fd* with its `struct kvm_run` until an exit is Python's, and gives 0 or an errno."""
        vcpu_run, plains, area = lib.vcpu_run, self._plains, ffi.from_buffer("uint8_t[]", run)
        return lambda: vcpu_run(fd, area, plains)
