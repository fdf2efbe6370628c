"""Eventfds as interrupts and as doorbells: irqfd, ioeventfd, and the GSI routing table."""

from __future__ import annotations

from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl
from vmm.kvm.vm import Vm


def assign_irqfd(vm: Vm, fd: int, gsi: int) -> None:
    """Each write to the eventfd *fd* is one edge on *gsi* (KVM api.rst 4.75)."""
    ioctl("KVM_IRQFD", vm.fd, abi.KVM_IRQFD, abi.kvm_irqfd(fd=fd, gsi=gsi))


def assign_ioeventfd(vm: Vm, fd: int, address: int, size: int, value: int | None = None, *, pio: bool = False) -> None:
    """A guest write of *size* bytes to *address* signals *fd* without an exit (KVM api.rst 4.59).

    With *value*, only a write of just that value does.
    """
    flags = abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
    if value is not None:
        flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
    request = abi.kvm_ioeventfd(datamatch=value or 0, addr=address, len=size, fd=fd, flags=flags)
    ioctl("KVM_IOEVENTFD", vm.fd, abi.KVM_IOEVENTFD, request)


def set_gsi_routing(vm: Vm, routes: list[tuple[int, int, int]]) -> None:
    """Replace the whole routing table by *routes*, `(gsi, irqchip, pin)` each (KVM api.rst 4.52).

    Raises:
        ValueError: more routes than one call takes.
    """
    if len(routes) > abi.KVM_MAX_ROUTES:
        raise ValueError(f"{len(routes)} GSI routes, at most {abi.KVM_MAX_ROUTES}")
    table = abi.kvm_irq_routing(nr=len(routes))
    for entry, (gsi, irqchip, pin) in zip(table.entries, routes, strict=False):
        entry.gsi, entry.type, entry.irqchip, entry.pin = gsi, abi.KVM_IRQ_ROUTING_IRQCHIP, irqchip, pin
    ioctl("KVM_SET_GSI_ROUTING", vm.fd, abi.KVM_SET_GSI_ROUTING, table)


def pc_routes() -> list[tuple[int, int, int]]:
    """The PC's wiring: ISA interrupts to both PICs and the IO-APIC (IRQ 0 on its pin 2), the rest to the IO-APIC."""
    routes = []
    for gsi in range(16):
        chip = abi.KVM_IRQCHIP_PIC_MASTER if gsi < 8 else abi.KVM_IRQCHIP_PIC_SLAVE
        if gsi != 2:
            routes.append((gsi, chip, gsi % 8))
            routes.append((gsi, abi.KVM_IRQCHIP_IOAPIC, 2 if gsi == 0 else gsi))
    routes += [(gsi, abi.KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(16, 24)]
    return routes
