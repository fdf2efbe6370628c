"""Plain and posted registers: what the vCPU threads answer in C, without Python and its lock."""

from __future__ import annotations

import threading

from vmm.native._engine import ffi, lib
from vmm.regs import PostedRegister

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from vmm.bus import Bus


class PlainRegisters:
    """The plain and posted registers on a machine's two buses, kept up to date as devices come and go. Any thread.

    Writes are posted from the first look at `timer_fd` on: whoever looks calls `hand_over` whenever it is readable.
    """

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
            entry.address, entry.accesses = address, ffi.from_buffer("uint64_t[]", register.accesses)
            buffers.append(entry.accesses)
            if isinstance(register, PostedRegister):
                buffers.append(ffi.from_buffer("struct posted *", register.ring))
                entry.size = entry.width = 1
                entry.posted = buffers[-1]
                continue
            storage, gate = (ffi.from_buffer("uint8_t[]", buffer) for buffer in (register.storage, register.gate))
            buffers += [storage, gate]
            entry.size, entry.width, entry.writable = len(storage), register.width, register.writable
            entry.bytes, entry.gate = storage, gate
        lib.plains_replace(self._plains, registers, *map(len, parts))
        # SAFETY: C keeps the addresses of the buffers until the next replacement, and so do we.
        self._buffers = buffers
        self._posted = [register for _, register in rows if isinstance(register, PostedRegister)]

    @property
    def timer_fd(self) -> int:
        """Readable a millisecond after something was posted; -1 if the host gives none, and then nothing is posted."""
        return int(lib.plains_timer(self._plains))

    def hand_over(self) -> None:
        """Let the devices take what was posted so far."""
        lib.plains_rewind(self._plains)
        for register in self._posted:
            register.hand_over()

    def close(self) -> None:
        """Let the devices take the rest, and let go of everything; no vCPU runs any more."""
        self.hand_over()
        self._buses[0].changed = self._buses[1].changed = lambda: None
        ffi.release(self._plains)

    def runner(self, fd: int, run: mmap) -> Callable[[], int]:
        """What runs the vCPU *fd* with its `struct kvm_run` until an exit is Python's, and gives 0 or an errno."""
        vcpu_run, plains, area = lib.vcpu_run, self._plains, ffi.from_buffer("uint8_t[]", run)
        return lambda: vcpu_run(fd, area, plains)
