"""Eventfds as interrupts and as doorbells: irqfd, ioeventfd, and the GSI routing table."""

from __future__ import annotations

import threading

from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl
from vmm.kvm.vm import Vm
from vmm.layout import IOAPIC_PINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    #: GSI, kind (`KVM_IRQ_ROUTING_…`), and what the kind takes.
    Route = tuple[int, int, tuple[int, ...]]

_PIC_PINS = 8


def assign_irqfd(vm: Vm, fd: int, gsi: int, resample_fd: int | None = None) -> None:
    """Each write to the eventfd *fd* is one edge on *gsi* (KVM api.rst 4.75).

    With *resample_fd* it asserts *gsi*; the guest's end of interrupt takes that back and signals *resample_fd*.
    """
    request = abi.kvm_irqfd(fd=fd, gsi=gsi)
    if resample_fd is not None:
        request.flags, request.resamplefd = abi.KVM_IRQFD_FLAG_RESAMPLE, resample_fd
    ioctl("KVM_IRQFD", vm.fd, abi.KVM_IRQFD, request)


def deassign_irqfd(vm: Vm, fd: int, gsi: int) -> None:
    """Undo `assign_irqfd`."""
    ioctl("KVM_IRQFD", vm.fd, abi.KVM_IRQFD, abi.kvm_irqfd(fd=fd, gsi=gsi, flags=abi.KVM_IRQFD_FLAG_DEASSIGN))


def assign_ioeventfd(vm: Vm, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False) -> None:
    """A guest write of *size* bytes to *address* signals *fd* without an exit (KVM api.rst 4.59).

    With *value*, only a write of just that value does.
    """
    flags = abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
    if value is not None:
        flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
    request = abi.kvm_ioeventfd(datamatch=value or 0, addr=address, len=size, fd=fd, flags=flags)
    ioctl("KVM_IOEVENTFD", vm.fd, abi.KVM_IOEVENTFD, request)


def deassign_ioeventfd(vm: Vm, fd: int, address: int, size: int) -> None:
    """Undo `assign_ioeventfd` of an MMIO address without a value."""
    request = abi.kvm_ioeventfd(addr=address, len=size, fd=fd, flags=abi.KVM_IOEVENTFD_FLAG_DEASSIGN)
    ioctl("KVM_IOEVENTFD", vm.fd, abi.KVM_IOEVENTFD, request)


def set_gsi_routing(vm: Vm, routes: Sequence[Route]) -> None:
    """Replace the whole routing table by *routes* (KVM api.rst 4.52).

    Raises:
        ValueError: more routes than one call takes.
    """
    if len(routes) > abi.KVM_MAX_ROUTES:
        raise ValueError(f"{len(routes)} GSI routes, at most {abi.KVM_MAX_ROUTES}")
    table = abi.kvm_irq_routing(nr=len(routes))
    for entry, (gsi, kind, target) in zip(table.entries, routes, strict=False):
        entry.gsi, entry.type = gsi, kind
        entry.target[: len(target)] = target
    ioctl("KVM_SET_GSI_ROUTING", vm.fd, abi.KVM_SET_GSI_ROUTING, table)


def irqchip_routes() -> list[Route]:
    """KVM's routing at the start: GSI n to IO-APIC pin n, the ISA interrupts to the PICs too."""
    routes: list[Route] = []
    for gsi in range(IOAPIC_PINS):
        if gsi < 2 * _PIC_PINS:
            chip = abi.KVM_IRQCHIP_PIC_MASTER if gsi < _PIC_PINS else abi.KVM_IRQCHIP_PIC_SLAVE
            routes.append((gsi, abi.KVM_IRQ_ROUTING_IRQCHIP, (chip, gsi % _PIC_PINS)))
        routes.append((gsi, abi.KVM_IRQ_ROUTING_IRQCHIP, (abi.KVM_IRQCHIP_IOAPIC, gsi)))
    return routes


class MsiRouter:
    """Eventfds whose signals are messages. It owns the VM's routing table, which KVM replaces as a whole. Any thread.

    An eventfd gets a GSI of its own, above the IO-APIC's, with its first message.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._routes = irqchip_routes()
        self._first = len(self._routes)
        self._gsis: dict[int, int] = {}

    def set_messages(self, messages: Sequence[tuple[int, int, int]]) -> None:
        """For each (eventfd, address, data): what its signals will send from now on. One ioctl, if anything is new."""
        with self._lock:
            changed = False
            for fd, address, data in messages:
                gsi = self._gsis.setdefault(fd, IOAPIC_PINS + len(self._gsis))
                route = (gsi, abi.KVM_IRQ_ROUTING_MSI, (address & 0xFFFF_FFFF, address >> 32, data))
                place = self._first + gsi - IOAPIC_PINS
                if self._routes[place : place + 1] != [route]:
                    self._routes[place : place + 1] = [route]
                    changed = True
            if changed:
                set_gsi_routing(self._vm, self._routes)

    def attach(self, fd: int) -> None:
        """Send the message of *fd*, which has one, for each of its signals; at once if it is signalled."""
        assign_irqfd(self._vm, fd, self._gsis[fd])

    def detach(self, fd: int) -> None:
        """Let the signals of *fd* stay in it."""
        deassign_irqfd(self._vm, fd, self._gsis[fd])
