"""The driver's side of virtio: real rings in real guest memory, and a transport walked through as Linux does it."""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from vmm.memory import GuestMemory
from vmm.trace import Tally
from vmm.virtio.spec import USED_F_NO_NOTIFY, DescFlag, Feature, Status
from vmm.virtio.transport.core import Transport
from vmm.virtio.transport.mmio import MAGIC, MmioTransport
from vmm.virtio.transport.pci import PciTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fakes.pci import FakeSlot
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.transport.core import Reporting

MIB = 1 << 20
DESC = struct.Struct("<QIHH")


@dataclass(frozen=True)
class Buffer:
    """One piece of guest memory in a chain."""

    gpa: int
    size: int
    writable: bool = False


class Arena:
    """Hands out guest memory of [*base*, *end*), 16-byte aligned, and never takes it back."""

    def __init__(self, memory: GuestMemory, base: int, end: int) -> None:
        self.memory, self._next, self._end = memory, base, end

    def reserve(self, size: int, alignment: int = 16) -> int:
        """The gpa of *size* fresh bytes."""
        gpa = -(-self._next // alignment) * alignment
        self._next = gpa + size
        assert self._next <= self._end, "the test wants more memory than the arena has"
        return gpa

    def readable(self, data: bytes) -> Buffer:
        """A buffer for the device to read *data* from."""
        gpa = self.reserve(len(data))
        self.memory.write(gpa, data)
        return Buffer(gpa, len(data))

    def writable(self, size: int) -> Buffer:
        """A buffer for the device to write to, filled with 0xcc."""
        gpa = self.reserve(size)
        self.memory.write(gpa, b"\xcc" * size)
        return Buffer(gpa, size, writable=True)

    def content(self, buffer: Buffer) -> bytes:
        """What is in *buffer* now."""
        return self.memory.read(buffer.gpa, buffer.size)


class DriverQueue:
    """The driver's side of one split ring (VIRTIO 1.2 §2.7), and the tools to break it."""

    def __init__(self, arena: Arena, size: int, *, event_idx: bool = False, start: int = 0) -> None:
        self.arena, self.memory, self.size, self.event_idx = arena, arena.memory, size, event_idx
        self.desc = arena.reserve(16 * size)
        self.driver = arena.reserve(4 + 2 * size + 2)
        self.device = arena.reserve(4 + 8 * size + 2)
        for gpa, area_bytes in ((self.desc, 16 * size), (self.driver, 6 + 2 * size), (self.device, 6 + 8 * size)):
            self.memory.write(gpa, bytes(area_bytes))
        self.avail_idx = self.used_idx = self._kicked_idx = start
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}

    # What a driver does.

    def add(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Make *buffers* available as one chain; its head."""
        if indirect:
            table = self.arena.reserve(16 * len(buffers))
            for index, buffer in enumerate(buffers):
                more = index + 1 < len(buffers)
                self.memory.write(table + 16 * index, _descriptor(buffer, index + 1 if more else None))
            head = self._free.pop(0)
            self.set_descriptor(head, table, 16 * len(buffers), DescFlag.INDIRECT, 0)
            self._chains[head] = [head]
        else:
            indexes = [self._free.pop(0) for _ in buffers]
            for buffer, index, following in zip(buffers, indexes, [*indexes[1:], None], strict=True):
                self.memory.write(self.desc + 16 * index, _descriptor(buffer, following))
            head = indexes[0]
            self._chains[head] = indexes
        self.offer(head)
        return head

    def kick_wanted(self) -> bool:
        """Whether the device wants a kick for what was added since the last call (VIRTIO 1.2 §2.7.10)."""
        old, self._kicked_idx = self._kicked_idx, self.avail_idx
        if self.event_idx:
            event = self.memory.load_u16(self.device + 4 + 8 * self.size)
            return (self.avail_idx - event - 1) & 0xFFFF < (self.avail_idx - old) & 0xFFFF
        return not self.memory.load_u16(self.device) & USED_F_NO_NOTIFY

    def collect(self) -> list[tuple[int, int]]:
        """The (head, written bytes) that came back since the last call; their descriptors are free again."""
        used = []
        while self.used_idx != self.memory.load_u16(self.device + 2):
            entry = self.device + 4 + 8 * (self.used_idx % self.size)
            head, written = self.memory.load_u32(entry), self.memory.load_u32(entry + 4)
            self._free.extend(self._chains.pop(head, []))
            used.append((head, written))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        if self.event_idx:
            self.memory.store_u16(self.driver + 4 + 2 * self.size, self.used_idx)
        return used

    # What a hostile one does.

    def set_descriptor(self, index: int, gpa: int, size: int, flags: int, following: int) -> None:
        """Write the descriptor *index* as it is."""
        self.memory.write(self.desc + 16 * index, DESC.pack(gpa, size, flags, following))

    def offer(self, head: int) -> None:
        """Make the chain at *head* available."""
        self.memory.store_u16(self.driver + 4 + 2 * (self.avail_idx % self.size), head)
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, value: int) -> None:
        """Move the available index."""
        self.avail_idx = value & 0xFFFF
        self.memory.store_u16(self.driver + 2, self.avail_idx)

    def set_avail_flags(self, value: int) -> None:
        """Set the flags of the available ring."""
        self.memory.store_u16(self.driver, value)

    def set_used_event(self, value: int) -> None:
        """Ask for an interrupt when the used index passes *value*."""
        self.memory.store_u16(self.driver + 4 + 2 * self.size, value & 0xFFFF)


def _descriptor(buffer: Buffer, following: int | None) -> bytes:
    flags = (DescFlag.WRITE if buffer.writable else 0) | (DescFlag.NEXT if following is not None else 0)
    return DESC.pack(buffer.gpa, buffer.size, flags, following or 0)


class CountingIrq:
    """An interrupt line that counts its pulses, calls and writes to `fd` alike."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._counted = 0

    def pulse(self) -> None:
        os.eventfd_write(self.fd, 1)

    @property
    def pulses(self) -> int:
        """How many there were."""
        with contextlib.suppress(BlockingIOError):
            self._counted += os.eventfd_read(self.fd)
        return self._counted

    def close(self) -> None:
        os.close(self.fd)


class Driver:
    """Programs a transport through its registers, as Linux does; what differs between the transports is their table."""

    #: Name -> (offset, size).
    registers: ClassVar[dict[str, tuple[int, int]]]

    def __init__(self, transport: Transport, arena: Arena) -> None:
        self.transport, self.arena = transport, arena
        self.features = 0
        self.queues: list[DriverQueue] = []

    def read(self, offset: int, size: int = 4) -> int:
        """Read a register, as the bus does for the guest."""
        with self.transport.lock:
            return self.transport.read(offset, size) & ((1 << 8 * size) - 1)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write a register, as the bus does for the guest."""
        with self.transport.lock:
            self.transport.write(offset, size, value)

    def get(self, name: str) -> int:
        """Read the register *name*."""
        return self.read(*self.registers[name])

    def put(self, name: str, value: int) -> None:
        """Write the register *name*."""
        offset, size = self.registers[name]
        self.write(offset, value, size)

    @property
    def status(self) -> int:
        return self.get("status")

    @status.setter
    def status(self, value: int) -> None:
        self.put("status", value)

    def identify(self) -> None:
        """Check that this is a device that can be driven, and reach its registers."""

    def set_up_interrupts(self) -> None:
        """Choose how to be interrupted."""

    def reset(self) -> None:
        """Reset the device."""
        self.status = 0
        self.queues = []

    def offered(self) -> int:
        """The device's feature bits."""
        offered = 0
        for half in (0, 1):
            self.put("device_feature_select", half)
            offered |= self.get("device_feature") << 32 * half
        return offered

    def accept(self, features: int) -> None:
        """Write the driver's feature bits."""
        for half in (0, 1):
            self.put("driver_feature_select", half)
            self.put("driver_feature", features >> 32 * half & 0xFFFF_FFFF)
        self.features = features

    def negotiate(self, features: int | None = None) -> bool:
        """From reset to FEATURES_OK with *features* (default: all that are offered); whether the device agreed."""
        self.identify()
        self.reset()
        self.status |= Status.ACKNOWLEDGE
        self.status |= Status.DRIVER
        self.accept(self.offered() if features is None else features)
        self.status |= Status.FEATURES_OK
        return bool(self.status & Status.FEATURES_OK)

    def queue_register(self, index: int, name: str) -> int:
        """The register *name* of queue *index*."""
        self.put("queue_select", index)
        return self.get(name)

    def set_up_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """Make queue *index*, with *size* entries (default: as many as there may be), and enable it."""
        assert not self.queue_register(index, "queue_enable"), "the queue is in use already"
        largest = self.get("queue_size_max")
        queue = DriverQueue(self.arena, size or largest, event_idx=bool(self.features & Feature.EVENT_IDX))
        self.program_queue(index, queue.size, queue.desc, queue.driver, queue.device)
        self.queues.append(queue)
        return queue

    def program_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Write the registers of queue *index*, right or wrong, and enable it."""
        self.put("queue_select", index)
        self.put("queue_size", size)
        for area, gpa in (("desc", desc), ("driver", driver), ("device", device)):
            offset, size = self.registers[area]
            self.write(offset, gpa & 0xFFFF_FFFF, size)
            self.write(offset + 4, gpa >> 32, size)
        self.put("queue_enable", 1)

    def start(self, features: int | None = None, size: int | None = None) -> list[DriverQueue]:
        """All of it, from reset to DRIVER_OK; the queues."""
        assert self.negotiate(features)
        self.set_up_interrupts()
        for index in range(len(self.transport.device.queue_sizes)):
            self.set_up_queue(index, size)
        self.status |= Status.DRIVER_OK
        return self.queues

    def kick(self, index: int) -> None:
        """Notify the device of queue *index*, by a write that reaches it as an exit."""
        raise NotImplementedError

    def take_interrupt(self) -> int:
        """The causes of the interrupts that came, which are acknowledged."""
        raise NotImplementedError


class MmioDriver(Driver):
    """As Linux's `virtio_mmio.c`."""

    registers: ClassVar[dict[str, tuple[int, int]]] = {
        "device_feature": (0x010, 4),
        "device_feature_select": (0x014, 4),
        "driver_feature": (0x020, 4),
        "driver_feature_select": (0x024, 4),
        "queue_select": (0x030, 4),
        "queue_size_max": (0x034, 4),
        "queue_size": (0x038, 4),
        "queue_enable": (0x044, 4),
        "status": (0x070, 4),
        "desc": (0x080, 4),
        "driver": (0x090, 4),
        "device": (0x0A0, 4),
    }

    def identify(self) -> None:
        """As `Driver.identify`."""
        assert self.read(0x000) == MAGIC
        assert self.read(0x004) == 2

    def kick(self, index: int) -> None:
        """As `Driver.kick`."""
        self.write(0x050, index)

    def take_interrupt(self) -> int:
        """As `Driver.take_interrupt`."""
        causes = self.read(0x060)
        self.write(0x064, causes)
        return causes


@dataclass
class Rig:
    """A device behind a transport in a machine that has nothing else; *transport* is "mmio", "pci", or "intx"."""

    device: VirtioDevice
    memory_bytes: int = 4 * MIB
    faults: list[str] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    tracing: bool = False
    kind: str = "mmio"

    def __post_init__(self) -> None:
        self.memory = GuestMemory(self.memory_bytes)
        self.tally = Tally()
        self.arena = Arena(self.memory, 0x1_0000, self.memory_bytes)
        trace = self.traced.append if self.tracing else None
        reporting: Reporting = {"on_fault": self.faults.append, "trace": trace, "tally": self.tally}
        self.transport: Transport
        self.irq: CountingIrq | FakeSlot
        self.driver: Driver
        if self.kind == "mmio":
            self.irq = CountingIrq()
            self.transport = MmioTransport(self.device, self.memory, self.irq, **reporting)
            self.driver = MmioDriver(self.transport, self.arena)
        else:
            from tests.fakes.pci import FakeSlot, PciDriver

            self.irq = FakeSlot()
            transport = PciTransport(self.device, self.memory, self.irq, **reporting)
            self.transport = transport
            self.driver = PciDriver(transport, self.arena, self.irq, messages=self.kind == "pci")

    def run_kicks(self) -> None:
        """Do what the event loop does for the kick eventfds, until all are drained."""
        import select

        poller = select.poll()
        for fd in self.transport.kick_fds:
            poller.register(fd, select.POLLIN)
        while ready := dict(poller.poll(0)):
            for index, fd in enumerate(self.transport.kick_fds):
                if fd in ready:
                    with self.transport.lock:
                        self.transport.kick_callback(index)()

    def close(self) -> None:
        """Take it apart; fails if anything still holds guest memory."""
        self.transport.close()
        self.memory.close()
        if isinstance(self.irq, CountingIrq):
            self.irq.close()
