"""How PCI functions hang on the machine: their BARs on the MMIO bus, their doorbells and interrupts on KVM."""

from __future__ import annotations

from vmm import layout
from vmm.devices.pci.host import ConfigPorts, Ecam, PciBus
from vmm.kvm import irqfd
from vmm.virtio.transport.pci import PciTransport
from vmm.virtio.transport.pci_config import BAR_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Unpack

    from vmm.bus import Bus, Device
    from vmm.eventloop import EventLoop
    from vmm.kvm.vm import Vm
    from vmm.memory import GuestMemory
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.transport.core import Reporting

_DOORBELL_SIZE = 2


class PciRoot:
    """Bus 0, reachable by ports and by ECAM, and what its functions share. The main thread's."""

    def __init__(self, vm: Vm, pio: Bus, mmio: Bus, memory: GuestMemory) -> None:
        self.vm, self.mmio = vm, mmio
        self.router = irqfd.MsiRouter(vm)
        #: Where BARs may be, as `layout.pci_windows`.
        self.windows = layout.pci_windows(memory.memory_bytes)
        #: (slot, GSI of INTA#) of each function.
        self.lines: list[tuple[int, int]] = []
        self._memory = memory
        self._bus = PciBus()
        self.ports = ConfigPorts(self._bus)
        pio.attach(layout.PORT_PCI_CONFIG, 8, self.ports)
        mmio.attach(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, Ecam(self._bus))

    def plug(self, device: VirtioDevice, loop: EventLoop, **reporting: Unpack[Reporting]) -> PciTransport:
        """Put *device* into the next slot; `layout.PCI_SLOTS` times at most. The caller closes what this gives."""
        number = len(self.lines) + 1
        slot = PciSlot(self, number)
        self.lines.append((number, slot.gsi))
        transport = PciTransport(device, self._memory, slot, **reporting)
        self._bus.add(number, transport)
        loop.watch(transport.resample_fd, transport.resample, transport.lock)
        return transport


class PciSlot:
    """What the function in one slot asks of the machine; `vmm.virtio.transport.pci.Slot` says it all."""

    def __init__(self, root: PciRoot, number: int) -> None:
        self.gsi = layout.PCI_GSIS[number % len(layout.PCI_GSIS)]
        self.base = layout.PCI_BARS + number * layout.PCI_BAR_STRIDE
        self.set_messages, self.attach, self.detach = root.router.set_messages, root.router.attach, root.router.detach
        self._vm, self._mmio, self._windows = root.vm, root.mmio, root.windows
        self._placed: int | None = None

    def place(self, device: Device, base: int | None, doorbells: Sequence[tuple[int, int]]) -> None:
        """As `Slot.place`. In a guest that puts it where something else is, it is nowhere."""
        if self._placed is not None:
            for offset, fd in doorbells:
                irqfd.deassign_ioeventfd(self._vm, fd, self._placed + offset, _DOORBELL_SIZE)
            self._mmio.detach(device)
            self._placed = None
        if base is None or not any(gpa <= base and base + BAR_SIZE <= gpa + size for gpa, size in self._windows):
            return
        try:
            self._mmio.attach(base, BAR_SIZE, device)
        except ValueError:
            return
        self._placed = base
        for offset, fd in doorbells:
            irqfd.assign_ioeventfd(self._vm, fd, base + offset, _DOORBELL_SIZE)

    def attach_line(self, fd: int, resample_fd: int) -> None:
        """As `Slot.attach_line`."""
        irqfd.assign_irqfd(self._vm, fd, self.gsi, resample_fd)

    def detach_line(self, fd: int) -> None:
        """As `Slot.detach_line`."""
        irqfd.deassign_irqfd(self._vm, fd, self.gsi)
