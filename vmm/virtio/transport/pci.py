"""virtio over PCI, modern (VIRTIO 1.2 §4.1): the register face of `TransportCore`, in one memory BAR."""

from __future__ import annotations

import os

from vmm.bus import ALL_ONES
from vmm.devices.pci import msix
from vmm.devices.pci.config import STATUS, Command, Status
from vmm.irq import EventFdIrqLine
from vmm.regs import PlainRegister, Register, register
from vmm.virtio.interrupts import LineInterrupts, Wire
from vmm.virtio.transport.core import Transport
from vmm.virtio.transport.pci_config import (
    COMMON,
    DEVICE,
    ISR,
    NOTIFY,
    NOTIFY_STRIDE,
    PAGE,
    PENDING,
    TABLE,
    VirtioConfigSpace,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol, Unpack

    from vmm.bus import Device
    from vmm.memory import GuestMemory
    from vmm.state import State
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.transport.core import Reporting

    class Slot(msix.MsiPort, Protocol):
        """What the machine does for the function in one slot. Any thread."""

        #: Where BAR 0 is at power-on, and what interrupt INTA# is connected to.
        base: int
        gsi: int

        def place(self, device: Device, base: int | None, doorbells: Sequence[tuple[int, int]]) -> None:
            """Let *device* answer at [*base*, *base* + `BAR_SIZE`), if that is free; at None, nowhere.

            *doorbells*: (offset, eventfd) pairs; a write of 16 bits to an offset signals the eventfd.
            """

        def attach_line(self, fd: int, resample_fd: int) -> None:
            """Let the eventfd *fd* assert INTA#. The guest's end of interrupt ends that and signals *resample_fd*."""

        def detach_line(self, fd: int) -> None:
            """Leave the signals of the eventfd *fd* where they are."""


NO_VECTOR = 0xFFFF
_U32 = 0xFFFF_FFFF


class PciInterrupts:
    """A message for each cause, or INTx while MSI-X is off. As `Interrupts`."""

    def __init__(self, queues: int, messages: msix.Msix, irq: EventFdIrqLine) -> None:
        self._messages = messages
        #: INTx, and the causes that the ISR shows in either form.
        self.line = LineInterrupts(irq)
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * queues

    def queue(self, index: int) -> None:
        """As `Interrupts.queue`."""
        if not self._messages.enabled:
            self.line.queue(index)
        elif (vector := self.queue_vectors[index]) != NO_VECTOR:
            self._messages.signal(vector)

    def config(self) -> None:
        """As `Interrupts.config`. The ISR shows this cause with MSI-X too (VIRTIO 1.2 §4.1.4.5.1)."""
        self.line.config()
        if self._messages.enabled and self.config_vector != NO_VECTOR:
            self._messages.signal(self.config_vector)

    def wire(self, index: int) -> Wire:
        """As `Interrupts.wire`."""
        if not self._messages.enabled:
            return self.line.wire(index)
        vector = self.queue_vectors[index]
        return Wire(-1 if vector == NO_VECTOR else self._messages.fds[vector])

    def reset(self) -> None:
        """As `Interrupts.reset`; the driver's choice of vectors is forgotten too."""
        self.line.reset()
        self._messages.forget()
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.queue_vectors)


def _half(offset: int, name: str, area: str, shift: int) -> Register:
    """32 bits of a queue area's address."""

    def read(transport: PciTransport) -> int:
        queue = transport.core.queue
        return getattr(queue, area) >> shift & _U32 if queue else 0

    declared = Register(offset, name, 4, read)
    declared.write = lambda transport, value: transport.core.set_queue_area(area, shift, value)
    return declared


class PciTransport(Transport):
    """One virtio device in a PCI slot: its registers in BAR 0 (`read`, `write`) and its configuration space.

    `place`, irqfds and messages follow what the configuration space says after each write to it.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        slot: Slot,
        **reporting: Unpack[Reporting],
    ) -> None:
        queues = len(device.queue_sizes)
        self._slot = slot
        self._msix = msix.Msix(queues + 1, slot)
        self._irq = EventFdIrqLine()
        self._interrupts = PciInterrupts(queues, self._msix, self._irq)
        super().__init__(device, memory, self._interrupts, **reporting)
        self.plain = (PlainRegister(DEVICE, device.config),)
        self.core.set_bus_master(False)
        #: Signalled when the guest has ended an INTx interrupt; for the event loop, with `resample`, under `lock`.
        self.resample_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._placed: int | None = None
        self._line_attached = False
        self._doorbells = [(NOTIFY + NOTIFY_STRIDE * index, fd) for index, fd in enumerate(self.kick_fds)]
        self._config = VirtioConfigSpace(device.device_id, queues, slot.base, slot.gsi)

    def close(self) -> None:
        """As `Transport.close`."""
        super().close()
        self._msix.close()
        self._irq.close()
        os.close(self.resample_fd)

    # Configuration space. The bus comes here without the lock.

    def read_config(self, offset: int, size: int) -> int:
        """As `Function.read_config`. Interrupt status, and the data of the window (§4.1.4.9), are made when read."""
        with self.lock:
            config = self._config
            pending = self._interrupts.line.status and not self._msix.enabled
            status = config.get(STATUS, 2) & ~Status.INTERRUPT
            config.set(STATUS, 2, status | Status.INTERRUPT if pending else status)
            target = config.window(offset, size)
            if target is not None:
                config.set_window_data(target[1], self.read(*target) & ALL_ONES[target[1]])
            return config.read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """As `Function.write_config`."""
        with self.lock:
            config = self._config
            config.write_config(offset, size, value)
            target = config.window(offset, size)
            if target is not None:
                self.write(*target, config.window_data(target[1]))
            self._follow_config()

    def _follow_config(self) -> None:
        """Let everything be as the configuration space says now."""
        config, command = self._config, self._config.command
        base = config.bar_base if command & Command.MEMORY else None
        if base != self._placed:
            self._placed = base
            self._slot.place(self, base, self._doorbells)
        self.core.set_bus_master(bool(command & Command.BUS_MASTER))
        by_messages = self._msix.enabled
        self._msix.set_control(config.msix_control)
        if self._msix.enabled != by_messages:
            for index in range(len(self.kick_fds)):
                self.core.rewire(index)
        self._follow_line()

    def _follow_line(self) -> None:
        """Let INTx be connected just while it is how the live device interrupts: most never use it."""
        disabled = self._msix.enabled or self._config.command & Command.INTX_DISABLE
        wanted = self.core.driver_ok and not disabled
        if wanted == self._line_attached:
            return
        self._line_attached = wanted
        if not wanted:
            self._slot.detach_line(self._irq.fd)
            return
        self._irq.drain()
        self._slot.attach_line(self._irq.fd, self.resample_fd)
        if self._interrupts.line.status:
            self._irq.pulse()

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        interrupts = self._interrupts
        return {
            "core": self.core.state(),
            "config": self._config.state(),
            "msix": self._msix.state(),
            "causes": interrupts.line.state(),
            "vectors": [interrupts.config_vector, *interrupts.queue_vectors],
        }

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`. A device that goes on needs to be a bus master, and its interrupts, before."""
        interrupts = self._interrupts
        self._config.restore(state["config"])
        self._msix.restore(state["msix"])
        interrupts.config_vector, *interrupts.queue_vectors = map(self._existing, state["vectors"])
        if len(interrupts.queue_vectors) != len(self.kick_fds):
            raise ValueError(f"{self.name} has {len(self.kick_fds)} queues")
        self._follow_config()
        self.core.restore(state["core"])
        interrupts.line.restore(state["causes"])
        self._follow_line()

    def resample(self) -> None:
        """The guest has ended an INTx interrupt: assert the line again if the driver has not seen all its causes."""
        try:
            os.eventfd_read(self.resample_fd)
        except BlockingIOError:
            return
        if self._line_attached and self._interrupts.line.status:
            self._irq.pulse()

    # BAR 0.

    def read(self, offset: int, size: int) -> int:
        """As `RegisterBlock.read`, with all regions."""
        region, at = offset & -PAGE, offset & PAGE - 1
        if region == COMMON:
            return super().read(offset, size)
        if region == ISR and not at:
            causes = self._interrupts.line.status
            self._interrupts.line.acknowledge(causes)
            return causes
        if region == DEVICE:
            return self.device.read_config(at, size)
        if region == TABLE:
            return self._msix.read_table(at, size)
        if region == PENDING:
            return self._msix.read_pending(at, size)
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """As `RegisterBlock.write`, with all regions."""
        region, at = offset & -PAGE, offset & PAGE - 1
        if region == COMMON:
            super().write(offset, size, value)
        elif region == DEVICE:
            self.device.write_config(at, size, value)
        elif region == NOTIFY:
            self.core.notify(at // NOTIFY_STRIDE)
        elif region == TABLE:
            self._msix.write_table(at, size, value)

    def register_name(self, offset: int) -> str:
        """As `RegisterBlock.register_name`."""
        region, at = offset & -PAGE, offset & PAGE - 1
        if region == COMMON:
            return super().register_name(offset)
        names = {ISR: "isr", DEVICE: "config", NOTIFY: "notify", TABLE: "msix_table", PENDING: "msix_pba"}
        return f"{names.get(region, hex(region))}+{at:#x}"

    # Common configuration (§4.1.4.3).

    @register(0x00, "device_feature_select")
    def device_feature_select(self) -> int:
        return self.core.device_features_select

    @device_feature_select.writer
    def _write_device_feature_select(self, value: int) -> None:
        self.core.device_features_select = value

    @register(0x04, "device_feature")
    def device_feature(self) -> int:
        return self.core.read_device_features()

    @register(0x08, "driver_feature_select")
    def driver_feature_select(self) -> int:
        return self.core.driver_features_select

    @driver_feature_select.writer
    def _write_driver_feature_select(self, value: int) -> None:
        self.core.driver_features_select = value

    @register(0x0C, "driver_feature")
    def driver_feature(self) -> int:
        return self.core.read_driver_features()

    @driver_feature.writer
    def _write_driver_feature(self, value: int) -> None:
        self.core.write_driver_features(value)

    @register(0x10, "config_msix_vector", 2)
    def config_msix_vector(self) -> int:
        return self._interrupts.config_vector

    @config_msix_vector.writer
    def _write_config_msix_vector(self, value: int) -> None:
        self._interrupts.config_vector = self._existing(value)

    @register(0x12, "num_queues", 2)
    def num_queues(self) -> int:
        return len(self.kick_fds)

    @register(0x14, "device_status", 1)
    def device_status(self) -> int:
        return self.core.status

    @device_status.writer
    def _write_device_status(self, value: int) -> None:
        self.core.write_status(value)
        self._follow_line()

    @register(0x15, "config_generation", 1)
    def config_generation(self) -> int:
        return self.core.device.generation & 0xFF

    @register(0x16, "queue_select", 2)
    def queue_select(self) -> int:
        return self.core.queue_select

    @queue_select.writer
    def _write_queue_select(self, value: int) -> None:
        self.core.queue_select = value

    @register(0x18, "queue_size", 2)
    def queue_size(self) -> int:
        return self.core.queue.size if self.core.queue else 0

    @queue_size.writer
    def _write_queue_size(self, value: int) -> None:
        queue = self.core.open_queue
        if queue is not None:
            queue.size = value

    @register(0x1A, "queue_msix_vector", 2)
    def queue_msix_vector(self) -> int:
        return self._interrupts.queue_vectors[self.core.queue_select] if self.core.queue else NO_VECTOR

    @queue_msix_vector.writer
    def _write_queue_msix_vector(self, value: int) -> None:
        if self.core.queue:
            self._interrupts.queue_vectors[self.core.queue_select] = self._existing(value)
            self.core.rewire(self.core.queue_select)

    @register(0x1C, "queue_enable", 2)
    def queue_enable(self) -> int:
        return int(self.core.queue.ready) if self.core.queue else 0

    @queue_enable.writer
    def _write_queue_enable(self, value: int) -> None:
        if value == 1:  # "The driver MUST NOT write a 0"
            self.core.write_queue_ready(1)

    @register(0x1E, "queue_notify_off", 2)
    def queue_notify_off(self) -> int:
        return self.core.queue_select if self.core.queue else 0

    queue_desc_low = _half(0x20, "queue_desc", "desc", 0)
    queue_desc_high = _half(0x24, "queue_desc+4", "desc", 32)
    queue_driver_low = _half(0x28, "queue_driver", "driver", 0)
    queue_driver_high = _half(0x2C, "queue_driver+4", "driver", 32)
    queue_device_low = _half(0x30, "queue_device", "device", 0)
    queue_device_high = _half(0x34, "queue_device+4", "device", 32)

    def _existing(self, vector: int) -> int:
        """*vector*, or `NO_VECTOR`, which tells the driver that there is none (§4.1.5.1.2)."""
        return vector if vector < len(self._msix.fds) else NO_VECTOR
