"""PCI functions on the machine: BARs on its bus, doorbells, messages and lines at KVM."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from tests.fakes.driver import MIB
from tests.fakes.echo import EchoDevice
from tests.fakes.loop import SteppedLoop
from vmm import layout
from vmm.bus import Bus
from vmm.kvm import abi
from vmm.kvm import ioctl as gate
from vmm.kvm.irqfd import irqchip_routes
from vmm.kvm.vm import Vm
from vmm.memory import GuestMemory
from vmm.pci import PciRoot
from vmm.trace import Tally
from vmm.virtio.transport.pci import PciTransport
from vmm.virtio.transport.pci_config import BAR_SIZE, NOTIFY

COMMAND, BAR0 = 0x04, 0x10
MEMORY = 2


class Eventfds:
    """KVM's side of irqfd, ioeventfd and routing: as picky as KVM."""

    def __init__(self) -> None:
        self.doorbells: dict[tuple[int, int], int] = {}
        self.irqfds: dict[int, tuple[int, int]] = {}
        self.routes: list[tuple[int, ...]] = []
        self.routings = 0

    def ioctl(self, _fd: int, request: int, argument: Any) -> int:
        target = argument._obj
        if request == abi.KVM_IOEVENTFD:
            place = (target.addr, target.len)
            if target.flags & abi.KVM_IOEVENTFD_FLAG_DEASSIGN:
                assert self.doorbells.pop(place) == target.fd
            else:
                assert place not in self.doorbells
                self.doorbells[place] = target.fd
        elif request == abi.KVM_IRQFD:
            if target.flags & abi.KVM_IRQFD_FLAG_DEASSIGN:
                assert self.irqfds.pop(target.fd)[0] == target.gsi
            else:
                assert target.fd not in self.irqfds, errno.EBUSY
                resample = target.resamplefd if target.flags & abi.KVM_IRQFD_FLAG_RESAMPLE else -1
                self.irqfds[target.fd] = (target.gsi, resample)
        else:
            assert request == abi.KVM_SET_GSI_ROUTING
            self.routings += 1
            self.routes = [(entry.gsi, entry.type, *entry.target) for entry in target.entries[: target.nr]]
        return 0

    def message(self, fd: int) -> tuple[int, int, int]:
        """Address (low, high) and data that the signals of *fd* send."""
        (route,) = [route for route in self.routes if route[0] == self.irqfds[fd][0]]
        assert route[1] == abi.KVM_IRQ_ROUTING_MSI
        return route[2], route[3], route[4]


class Machine:
    """Two devices on a bus."""

    def __init__(self) -> None:
        self.memory, self.loop, self.kvm = GuestMemory(MIB), SteppedLoop(), Eventfds()
        self.pio, self.mmio = Bus("pio"), Bus("mmio")
        self.root = PciRoot(Vm(-1, 0), self.pio, self.mmio, self.memory)
        self.first, self.second = self.plug(), self.plug()

    def plug(self) -> PciTransport:
        return self.root.plug(EchoDevice(), self.loop, on_fault=lambda _: None, trace=None, tally=Tally())

    def place(self, transport: PciTransport, base: int) -> None:
        transport.write_config(COMMAND, 2, 0)
        transport.write_config(BAR0, 8, base)
        transport.write_config(COMMAND, 2, MEMORY)

    def answers(self, transport: PciTransport, base: int) -> bool:
        """Whether *transport* is at *base*, with its doorbells."""
        found = self.mmio.find(base)
        bells = {(base + NOTIFY + 4 * index, 2): fd for index, fd in enumerate(transport.kick_fds)}
        here = found is not None and found[0] is transport
        assert here == (bells.items() <= self.kvm.doorbells.items())
        return here


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    with patch.object(gate, "raw_ioctl", made.kvm.ioctl):
        yield made
        made.first.close()
        made.second.close()
    made.loop.close()
    made.memory.close()


def test_each_is_found_where_firmware_would_have_put_it(machine: Machine) -> None:
    for slot, transport in ((1, machine.first), (2, machine.second)):
        machine.pio.write(layout.PORT_PCI_CONFIG, 4, 1 << 31 | slot << 11)
        assert machine.pio.read(layout.PORT_PCI_CONFIG + 4, 2) == 0x1AF4
        assert machine.mmio.read(layout.PCI_ECAM + (slot << 15), 2) == 0x1AF4
        base = transport.read_config(BAR0, 8) & ~0xF
        assert any(gpa <= base and base + BAR_SIZE <= gpa + size for gpa, size in machine.root.windows)
        transport.write_config(COMMAND, 2, MEMORY)
        assert machine.answers(transport, base)
    assert machine.root.lines == [(1, layout.PCI_GSIS[1]), (2, layout.PCI_GSIS[2])]


@pytest.mark.parametrize("base", [layout.PCI_BARS, layout.PCI_BARS + layout.PCI_BARS_SIZE - BAR_SIZE, 0x1_0000_0000])
def test_a_bar_goes_anywhere_in_the_windows(machine: Machine, base: int) -> None:
    old = machine.first.read_config(BAR0, 8) & ~0xF
    machine.place(machine.first, base)
    assert machine.answers(machine.first, base)
    assert not machine.answers(machine.first, old)
    assert len(machine.kvm.doorbells) == 2


@pytest.mark.parametrize(
    "base",
    [0, 0x8_0000, layout.VIRTIO_MMIO_BASE, layout.PCI_ECAM, layout.PCI_ECAM - BAR_SIZE, layout.IOAPIC_BASE,
     layout.LAPIC_BASE, layout.PCI_BARS - BAR_SIZE, layout.PCI_BARS + layout.PCI_BARS_SIZE, -BAR_SIZE & 2**64 - 1,
     2 << 30, 1 << 40],
)  # fmt: skip
def test_a_bar_outside_the_windows_answers_nowhere_until_it_is_moved_back(machine: Machine, base: int) -> None:
    machine.place(machine.first, base)
    assert machine.kvm.doorbells == {}
    assert not machine.answers(machine.first, base)
    machine.place(machine.first, layout.PCI_BARS)
    assert machine.answers(machine.first, layout.PCI_BARS)


def test_of_two_bars_at_one_place_the_first_answers(machine: Machine) -> None:
    machine.place(machine.first, layout.PCI_BARS)
    machine.place(machine.second, layout.PCI_BARS)
    assert machine.answers(machine.first, layout.PCI_BARS)
    machine.place(machine.first, layout.PCI_BARS + BAR_SIZE)
    machine.place(machine.second, layout.PCI_BARS)
    assert machine.answers(machine.first, layout.PCI_BARS + BAR_SIZE)
    assert machine.answers(machine.second, layout.PCI_BARS)


def test_messages_keep_the_routes_of_the_irqchip(machine: Machine) -> None:
    router = machine.root.router
    router.set_messages([(100, 0xFEE0_1000, 0x31), (101, 0x1_FEE0_2000, 0x32)])
    router.attach(100)
    router.attach(101)
    assert machine.kvm.routings == 1
    assert machine.kvm.message(100) == (0xFEE0_1000, 0, 0x31)
    assert machine.kvm.message(101) == (0xFEE0_2000, 1, 0x32)
    kept = [(gsi, kind, target) for gsi, kind, target in irqchip_routes()]
    assert [(route[0], route[1], route[2:4]) for route in machine.kvm.routes[: len(kept)]] == kept


def test_a_message_that_is_set_already_costs_nothing(machine: Machine) -> None:
    router = machine.root.router
    router.set_messages([(100, 0xFEE0_1000, 0x31)])
    router.set_messages([(100, 0xFEE0_1000, 0x31)])
    assert machine.kvm.routings == 1
    router.attach(100)
    router.set_messages([(100, 0xFEE0_1000, 0x32), (101, 0, 0)])
    assert machine.kvm.routings == 2
    assert machine.kvm.message(100) == (0xFEE0_1000, 0, 0x32)
    router.detach(100)
    assert machine.kvm.irqfds == {}


def test_the_end_of_an_intx_interrupt_is_watched(machine: Machine) -> None:
    assert machine.loop.watches(machine.first.resample_fd)
    machine.loop.settle()


def test_a_whole_bus_of_functions_has_routes_enough() -> None:
    """The largest device is a network card: 16 queue pairs and a control queue."""
    assert len(irqchip_routes()) + layout.PCI_SLOTS * (2 * 16 + 1 + 1) <= abi.KVM_MAX_ROUTES
