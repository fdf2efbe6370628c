"""The I/O buses: which device answers at a port or a guest-physical address. PIO and MMIO share this mechanism."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right

from vmm.trace import Tally, Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from vmm.regs import PlainRegister, PostedRegister

    class Device(Protocol):
        """What a bus talks to. Offsets, not addresses; the bus holds `lock` during each call."""

        name: str
        lock: threading.Lock

        def read(self, offset: int, size: int) -> int:
            """The *size* bytes (1, 2, 4 or 8) at *offset*, as an unsigned little-endian number."""

        def write(self, offset: int, size: int, value: int) -> None:
            """Take the *size* bytes *value* at *offset*."""

        def register_name(self, offset: int) -> str:
            """The name of the register at *offset*, for the trace."""


#: What a read gives where nobody answers, by its size in bytes (KVM splits accesses across pages: any up to 8).
ALL_ONES = tuple((1 << 8 * size) - 1 for size in range(9))


class Bus:
    """Maps disjoint address ranges to devices.

    The table is replaced, never changed, so a look-up takes no lock. Any thread; a device may be asked once more by
    another thread just after it was detached.
    Reads that nobody claims give all ones, writes vanish; both are counted in `tally` under ``unclaimed``.
    """

    def __init__(self, name: str, tally: Tally | None = None, trace: Trace | None = None) -> None:
        self.name = name
        self.tally = tally or Tally()
        self.trace = trace
        self._changing = threading.Lock()
        #: Called after a device came or went.
        self.changed: Callable[[], None] = lambda: None
        self._table: tuple[list[int], list[tuple[int, int, Device]]] = ([], [])

    def attach(self, base: int, size: int, device: Device) -> None:
        """Let *device* answer at [*base*, *base* + *size*).

        Raises:
            ValueError: the range is empty or overlaps another device's.
        """
        if size <= 0:
            raise ValueError(f"{self.name}: {device.name} at {base:#x} has no size")
        with self._changing:
            entries = sorted([*self._table[1], (base, base + size, device)], key=lambda entry: entry[0])
            for (_, end, left), (start, _, right) in itertools.pairwise(entries):
                if start < end:
                    raise ValueError(f"{self.name}: {left.name} and {right.name} overlap at {start:#x}")
            self._table = ([entry[0] for entry in entries], entries)
        self.changed()

    def detach(self, device: Device) -> None:
        """Take *device* off the bus, wherever it was attached."""
        with self._changing:
            entries = [entry for entry in self._table[1] if entry[2] is not device]
            self._table = ([entry[0] for entry in entries], entries)
        self.changed()

    def plain_registers(self) -> list[tuple[int, PlainRegister | PostedRegister]]:
        """The registers that the devices on the bus name as their `plain`, by address, ascending."""
        plain: list[tuple[int, PlainRegister | PostedRegister]] = [
            (base + p.offset, p) for base, _, device in self._table[1] for p in getattr(device, "plain", ())
        ]
        return sorted(plain, key=lambda entry: entry[0])

    def find(self, address: int, size: int = 1) -> tuple[Device, int] | None:
        """The device that holds all of [*address*, *address* + *size*), and the offset into it."""
        starts, entries = self._table
        index = bisect_right(starts, address) - 1
        if index >= 0:
            base, end, device = entries[index]
            if address + size <= end:
                return device, address - base
        return None

    def register_name(self, address: int) -> str:
        """What is at *address*, for statistics."""
        found = self.find(address)
        return f"{found[0].name}.{found[0].register_name(found[1])}" if found else f"{address:#x} (nobody)"

    def read(self, address: int, size: int) -> int:
        """What the guest reads: *size* bytes (1, 2, 4 or 8), all ones where nobody answers."""
        found = self.find(address, size)
        if found is None:
            self._unclaimed("read", address, size)
            return ALL_ONES[size]
        device, offset = found
        with device.lock:
            value = device.read(offset, size) & ALL_ONES[size]
        if self.trace:
            self.trace(f"{self.name} read  {device.name}.{device.register_name(offset)} -> {value:#x}")
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """What the guest writes: *value* of *size* bytes."""
        found = self.find(address, size)
        if found is None:
            self._unclaimed("write", address, size)
            return
        device, offset = found
        if self.trace:
            self.trace(f"{self.name} write {device.name}.{device.register_name(offset)} <- {value:#x}")
        with device.lock:
            device.write(offset, size, value)

    def _unclaimed(self, direction: str, address: int, size: int) -> None:
        self.tally.count("unclaimed")
        if self.trace:
            self.trace(f"{self.name} {direction} {address:#x} size {size}: nobody answers")
