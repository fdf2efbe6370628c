"""PCI bus 0 and the two ways to its configuration space: ports 0xCF8 and 0xCFC, and ECAM."""

from __future__ import annotations

import threading

from vmm.bus import ALL_ONES
from vmm.devices.pci.config import ConfigSpace
from vmm.state import attributes, put_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmm.state import State

    class Function(Protocol):
        """What is in a slot of the bus (function 0 of a device). Any thread; it has its own lock."""

        def read_config(self, offset: int, size: int) -> int:
            """*size* bytes at *offset* (below 4096) of its configuration space."""

        def write_config(self, offset: int, size: int, value: int) -> None:
            """Write *value* to the *size* bytes at *offset*."""


_ENABLE = 1 << 31
_DATA = 4  # the data port's offset from the address port


class PciBus:
    """The functions of bus 0, with nothing behind it. In slot 0 is the host bridge (its identity: QEMU's generic one).

    An address is what ECAM makes of bus, device, function and register: bits 20-27, 15-19, 12-14, 0-11.
    """

    def __init__(self) -> None:
        self._functions: dict[int, Function] = {0: ConfigSpace(vendor=0x1B36, device=0x0008, class_code=0x06_00_00)}

    def add(self, slot: int, function: Function) -> None:
        """Put *function* into *slot*, 1 to 31."""
        self._functions[slot << 15] = function

    def read(self, address: int, size: int) -> int:
        """*size* bytes at *address*, all ones where no function is."""
        function = self._functions.get(address & ~0xFFF)
        return ALL_ONES[size] if function is None else function.read_config(address & 0xFFF, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write *value* of *size* bytes to *address*."""
        function = self._functions.get(address & ~0xFFF)
        if function is not None:
            function.write_config(address & 0xFFF, size, value)


class ConfigPorts:
    """Configuration mechanism #1 (PCI Local Bus 3.0 §3.2.2.3.2), on 8 ports.

    =======  =====  ==========================================================
    offset   size   register
    =======  =====  ==========================================================
    0        4      address: enable (31), bus (16-23), device (11-15), function (8-10), register (2-7)
    4 … 7    1,2,4  the register's bytes
    =======  =====  ==========================================================
    """

    name = "pci"

    def __init__(self, bus: PciBus) -> None:
        self.lock = threading.Lock()
        self._bus = bus
        self._selected = 0

    def read(self, offset: int, size: int) -> int:
        """As `Device.read`."""
        if offset == 0 and size == 4:
            return self._selected
        if offset < _DATA or not self._selected & _ENABLE:
            return ALL_ONES[size]
        return self._bus.read(self._address(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As `Device.write`."""
        if offset == 0 and size == 4:
            self._selected = value
        elif offset >= _DATA and self._selected & _ENABLE:
            self._bus.write(self._address(offset), size, value)

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        return attributes(self, ("_selected",))

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`."""
        put_back(self, ("_selected",), state)

    def revive(self) -> None:
        """As `RegisterBlock.revive`: nothing is ever under way here."""

    def register_name(self, offset: int) -> str:
        """As `Device.register_name`."""
        return "CONFIG_ADDRESS" if offset < _DATA else "CONFIG_DATA"

    def _address(self, offset: int) -> int:
        return (self._selected >> 8 & 0xFFFF) << 12 | self._selected & 0xFC | offset - _DATA


class Ecam:
    """The enhanced configuration access mechanism (PCI Express 4.0 §7.2.2): bus 0's configuration space as memory."""

    name = "ecam"

    def __init__(self, bus: PciBus) -> None:
        self.lock = threading.Lock()
        self.read, self.write = bus.read, bus.write

    def register_name(self, offset: int) -> str:
        """As `Device.register_name`."""
        return f"{offset >> 15:02x}.{offset >> 12 & 7}+{offset & 0xFFF:#x}"
