"""A PCI slot without a machine, and a driver that finds a virtio device in it as Linux does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from tests.fakes.driver import Arena, Driver
from vmm import layout
from vmm.bus import Bus
from vmm.devices.pci import msix
from vmm.devices.pci.config import BAR0, COMMAND, STATUS, Command
from vmm.devices.pci.host import ConfigPorts, PciBus
from vmm.virtio.spec import Interrupt
from vmm.virtio.transport.pci import NO_VECTOR, PciTransport
from vmm.virtio.transport.pci_config import BAR_SIZE, CapabilityType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.bus import Device

SLOT = 1
ALL_ONES = 0xFFFF_FFFF
#: Where the driver lets messages go, and the data of vector 0's.
MESSAGE_ADDRESS, MESSAGE_DATA = 0xFEE0_1000, 0x41


def drain(fd: int) -> int:
    """How often the eventfd *fd* was signalled; it is empty then."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


class FakeSlot:
    """What the machine does for a function: a memory bus, and eventfds whose signals arrive when looked for."""

    def __init__(self) -> None:
        self.base, self.gsi = layout.PCI_BARS + layout.PCI_BAR_STRIDE, layout.PCI_GSIS[0]
        self.bus = Bus("mmio")
        self.doorbells: dict[int, int] = {}
        self.attached: set[int] = set()
        self.messages: dict[int, tuple[int, int]] = {}
        self.updates = 0
        #: (address, data) of the messages that came.
        self.arrived: list[tuple[int, int]] = []
        #: INTx: the eventfds of the line and of its end, while they are attached; whether the line is asserted.
        self.line: tuple[int, int] | None = None
        self.asserted = False
        self._pulses = 0

    # As `vmm.virtio.transport.pci.Slot`.

    def place(self, device: Device, base: int | None, doorbells: Sequence[tuple[int, int]]) -> None:
        self.bus.detach(device)
        self.doorbells = {}
        if base is not None:
            self.bus.attach(base, BAR_SIZE, device)
            self.doorbells = {base + offset: fd for offset, fd in doorbells}

    def set_messages(self, messages: Sequence[tuple[int, int, int]]) -> None:
        self.updates += 1
        self.messages |= {fd: (address, data) for fd, address, data in messages}

    def attach(self, fd: int) -> None:
        assert fd not in self.attached
        self.attached.add(fd)

    def detach(self, fd: int) -> None:
        self.attached.remove(fd)

    def attach_line(self, fd: int, resample_fd: int) -> None:
        assert self.line is None
        self.line = (fd, resample_fd)

    def detach_line(self, fd: int) -> None:
        assert self.line is not None
        assert self.line[0] == fd
        self.line = None

    # The guest's side.

    def collect(self) -> None:
        """Let what was signalled arrive."""
        for fd in self.attached:
            count = drain(fd)
            self.arrived += [self.messages[fd]] * count
            self._pulses += count
        if self.line is not None:
            count = drain(self.line[0])
            self.asserted |= count > 0
            self._pulses += count

    def take(self) -> list[tuple[int, int]]:
        """The messages that came since the last call, as (address, data)."""
        self.collect()
        arrived, self.arrived = self.arrived, []
        return arrived

    @property
    def pulses(self) -> int:
        """How often the device has interrupted."""
        self.collect()
        return self._pulses

    def line_connected(self) -> bool:
        """Whether INTA# is the function's to assert now."""
        return self.line is not None

    def end_interrupt(self) -> None:
        """The guest ends the interrupt of an asserted line."""
        self.collect()
        if self.asserted and self.line is not None:
            self.asserted = False
            os.eventfd_write(self.line[1], 1)


class PciDriver(Driver):
    """As Linux's `virtio_pci_modern.c`, by messages or by INTx, with all accesses over the buses."""

    registers: ClassVar[dict[str, tuple[int, int]]] = {
        "device_feature_select": (0x00, 4),
        "device_feature": (0x04, 4),
        "driver_feature_select": (0x08, 4),
        "driver_feature": (0x0C, 4),
        "config_vector": (0x10, 2),
        "num_queues": (0x12, 2),
        "status": (0x14, 1),
        "generation": (0x15, 1),
        "queue_select": (0x16, 2),
        "queue_size": (0x18, 2),
        "queue_size_max": (0x18, 2),
        "queue_vector": (0x1A, 2),
        "queue_enable": (0x1C, 2),
        "queue_notify_off": (0x1E, 2),
        "desc": (0x20, 4),
        "driver": (0x28, 4),
        "device": (0x30, 4),
    }

    def __init__(self, transport: PciTransport, arena: Arena, slot: FakeSlot, *, messages: bool = True) -> None:
        super().__init__(transport, arena)
        self.pci, self.slot, self.messages = transport, slot, messages
        bus = PciBus()
        bus.add(SLOT, transport)
        self.ports = Bus("pio")
        self.ports.attach(layout.PORT_PCI_CONFIG, 8, ConfigPorts(bus))
        self.identify()

    # Configuration space.

    def read_config(self, offset: int, size: int = 4) -> int:
        """Read from the function's configuration space."""
        self.ports.write(layout.PORT_PCI_CONFIG, 4, 1 << 31 | SLOT << 11 | offset & 0xFC)
        return self.ports.read(layout.PORT_PCI_CONFIG + 4 + offset % 4, size)

    def write_config(self, offset: int, value: int, size: int = 4) -> None:
        """Write to the function's configuration space."""
        self.ports.write(layout.PORT_PCI_CONFIG, 4, 1 << 31 | SLOT << 11 | offset & 0xFC)
        self.ports.write(layout.PORT_PCI_CONFIG + 4 + offset % 4, size, value)

    def command(self, *, on: int = 0, off: int = 0) -> None:
        """Set and clear bits of the command register."""
        self.write_config(COMMAND, self.read_config(COMMAND, 2) & ~off | on, 2)

    def capabilities(self) -> dict[int, list[int]]:
        """The offsets of the capabilities, by kind."""
        assert self.read_config(STATUS, 2) & 1 << 4
        found: dict[int, list[int]] = {}
        at = self.read_config(0x34, 1)
        while at:
            assert at % 4 == 0
            assert at >= 0x40
            found.setdefault(self.read_config(at, 1), []).append(at)
            assert sum(map(len, found.values())) < 48, "the list loops"
            at = self.read_config(at + 1, 1)
        return found

    def region(self, kind: int) -> tuple[int, int, int]:
        """Offset of the capability, offset in the BAR and length of the region of *kind*."""
        for at in self.capabilities()[0x09]:
            if self.read_config(at + 3, 1) == kind:
                return at, self.read_config(at + 8), self.read_config(at + 12)
        raise AssertionError(f"no region {kind}")

    def bar(self) -> int:
        """Where BAR 0 is."""
        return self.read_config(BAR0) & ~0xF | self.read_config(BAR0 + 4) << 32

    def move_bar(self, base: int) -> None:
        """Put BAR 0 at *base*, with decoding off meanwhile."""
        self.command(off=Command.MEMORY)
        self.write_config(BAR0, base & ALL_ONES)
        self.write_config(BAR0 + 4, base >> 32)
        self.command(on=Command.MEMORY)

    # As `Driver`.

    def read(self, offset: int, size: int = 4) -> int:
        """Read *offset* of the common configuration."""
        return self.slot.bus.read(self.bar() + self._common + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write *offset* of the common configuration."""
        self.slot.bus.write(self.bar() + self._common + offset, size, value)

    def identify(self) -> None:
        """As `Driver.identify`."""
        assert self.read_config(0) == 0x1AF4 | 0x1040 + self.transport.device.device_id << 16
        assert self.read_config(0x08, 1) >= 1
        _, self._common, length = self.region(CapabilityType.COMMON)
        assert length >= 0x38
        at, self._notify, self._notify_length = self.region(CapabilityType.NOTIFY)
        self._multiplier = self.read_config(at + 16)
        _, self._isr, _ = self.region(CapabilityType.ISR)
        (self.msix,) = self.capabilities()[msix.CAPABILITY]
        self.command(on=Command.MEMORY | Command.BUS_MASTER)

    def table(self, vector: int) -> int:
        """The address of *vector*'s entry in the MSI-X table."""
        return self.bar() + self.read_config(self.msix + 4) + 16 * vector

    def pending(self) -> int:
        """The MSI-X pending bits."""
        return self.slot.bus.read(self.bar() + self.read_config(self.msix + 8), 8)

    def mask(self, vector: int, masked: int) -> None:
        """Mask or unmask *vector*."""
        self.slot.bus.write(self.table(vector) + 12, 4, masked)

    def set_msix(self, control: int) -> None:
        """Write the message control register."""
        self.write_config(self.msix + msix.CONTROL, control, 2)

    def set_up_interrupts(self) -> None:
        """As `Driver.set_up_interrupts`."""
        if not self.messages:
            return
        self.set_msix(msix.ENABLE | msix.FUNCTION_MASK)
        self.command(on=Command.INTX_DISABLE)
        vectors = (self.read_config(self.msix + msix.CONTROL, 2) & 0x7FF) + 1
        for vector in range(vectors):
            entry = self.table(vector)
            for offset, value in ((0, MESSAGE_ADDRESS), (4, 0), (8, MESSAGE_DATA + vector), (12, 0)):
                self.slot.bus.write(entry + offset, 4, value)
        self.set_msix(msix.ENABLE)
        self.put("config_vector", 0)
        assert self.get("config_vector") == 0
        for index in range(self.get("num_queues")):
            self.put("queue_select", index)
            self.put("queue_vector", index + 1)
            assert self.get("queue_vector") != NO_VECTOR

    def kick_address(self, index: int) -> int:
        """Where to write to kick queue *index*."""
        if index < self.get("num_queues"):
            offset = self.queue_register(index, "queue_notify_off") * self._multiplier
            assert offset + 2 <= self._notify_length
        else:
            offset = index * self._multiplier
        return self.bar() + self._notify + offset

    def kick(self, index: int) -> None:
        """As `Driver.kick`."""
        self.slot.bus.write(self.kick_address(index), 2, index)

    def read_isr(self) -> int:
        """The interrupt status, which reading clears."""
        return self.slot.bus.read(self.bar() + self._isr, 1)

    def take_interrupt(self) -> int:
        """As `Driver.take_interrupt`."""
        if self.messages:
            vectors = {data - MESSAGE_DATA for _, data in self.slot.take()}
            return (Interrupt.CONFIG_CHANGE if 0 in vectors else 0) | (Interrupt.USED_BUFFER if vectors - {0} else 0)
        self.slot.collect()
        causes = self.read_isr() if self.slot.asserted else 0
        self.slot.end_interrupt()
        with self.pci.lock:
            self.pci.resample()
        return causes
