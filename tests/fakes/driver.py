"""The driver's side of virtio: real rings in real guest memory, and a transport walked through as Linux does it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm.memory import GuestMemory
from vmm.trace import Tally
from vmm.virtio.spec import USED_F_NO_NOTIFY, DescFlag, Feature, Status
from vmm.virtio.transport.mmio import MAGIC, MmioTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.virtio.device import VirtioDevice

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
    """An interrupt line that counts."""

    def __init__(self) -> None:
        self.pulses = 0
        self.fd = -1

    def pulse(self) -> None:
        self.pulses += 1


class MmioDriver:
    """Programs a `MmioTransport` through its registers, as Linux's `virtio_mmio.c` does."""

    def __init__(self, transport: MmioTransport, arena: Arena) -> None:
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

    @property
    def status(self) -> int:
        return self.read(0x070)

    @status.setter
    def status(self, value: int) -> None:
        self.write(0x070, value)

    def reset(self) -> None:
        """Reset the device."""
        self.status = 0
        self.queues = []

    def offered(self) -> int:
        """The device's feature bits."""
        offered = 0
        for half in (0, 1):
            self.write(0x014, half)
            offered |= self.read(0x010) << 32 * half
        return offered

    def accept(self, features: int) -> None:
        """Write the driver's feature bits."""
        for half in (0, 1):
            self.write(0x024, half)
            self.write(0x020, features >> 32 * half & 0xFFFF_FFFF)
        self.features = features

    def negotiate(self, features: int | None = None) -> bool:
        """From reset to FEATURES_OK with *features* (default: all that are offered); whether the device agreed."""
        assert self.read(0x000) == MAGIC
        assert self.read(0x004) == 2
        self.reset()
        self.status |= Status.ACKNOWLEDGE
        self.status |= Status.DRIVER
        self.accept(self.offered() if features is None else features)
        self.status |= Status.FEATURES_OK
        return bool(self.status & Status.FEATURES_OK)

    def set_up_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """Make queue *index*, with *size* entries (default: as many as there may be), and enable it."""
        self.write(0x030, index)
        assert not self.read(0x044), "the queue is in use already"
        largest = self.read(0x034)
        queue = DriverQueue(self.arena, size or largest, event_idx=bool(self.features & Feature.EVENT_IDX))
        self.program_queue(index, queue.size, queue.desc, queue.driver, queue.device)
        self.queues.append(queue)
        return queue

    def program_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Write the registers of queue *index*, right or wrong, and enable it."""
        self.write(0x030, index)
        self.write(0x038, size)
        for register, gpa in ((0x080, desc), (0x090, driver), (0x0A0, device)):
            self.write(register, gpa & 0xFFFF_FFFF)
            self.write(register + 4, gpa >> 32)
        self.write(0x044, 1)

    def start(self, features: int | None = None, size: int | None = None) -> list[DriverQueue]:
        """All of it, from reset to DRIVER_OK; the queues."""
        assert self.negotiate(features)
        for index in range(len(self.transport.device.queue_sizes)):
            self.set_up_queue(index, size)
        self.status |= Status.DRIVER_OK
        return self.queues

    def kick(self, index: int) -> None:
        """Notify the device of queue *index*, by a write that reaches it as an exit."""
        self.write(0x050, index)

    def take_interrupt(self) -> int:
        """Read and acknowledge the causes of interrupts."""
        causes = self.read(0x060)
        self.write(0x064, causes)
        return causes


@dataclass
class Rig:
    """A device behind an MMIO transport in a machine that has nothing else."""

    device: VirtioDevice
    memory_bytes: int = 4 * MIB
    faults: list[str] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    tracing: bool = False

    def __post_init__(self) -> None:
        self.memory = GuestMemory(self.memory_bytes)
        self.irq = CountingIrq()
        self.tally = Tally()
        self.transport = MmioTransport(
            self.device,
            self.memory,
            self.irq,
            on_fault=self.faults.append,
            trace=self.traced.append if self.tracing else None,
            tally=self.tally,
        )
        self.arena = Arena(self.memory, 0x1_0000, self.memory_bytes)
        self.driver = MmioDriver(self.transport, self.arena)

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
