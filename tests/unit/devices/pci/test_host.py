"""The bus, by ports and by ECAM."""

from __future__ import annotations

import itertools

import pytest

from vmm import layout
from vmm.bus import Bus
from vmm.devices.pci.config import ConfigSpace
from vmm.devices.pci.host import ConfigPorts, Ecam, PciBus

ADDRESS, DATA = layout.PORT_PCI_CONFIG, layout.PORT_PCI_CONFIG + 4
ENABLE = 1 << 31


class Machine:
    """A bus with a function in slot 3 whose bytes from 0x40 on are 0x40, 0x41, … and can be written."""

    def __init__(self) -> None:
        pci = PciBus()
        self.function = ConfigSpace(vendor=0xAAAA, device=0xBBBB, class_code=0)
        for offset in range(0x40, 0x100):
            self.function.set(offset, 1, offset)
        self.function.allow(0x40, 0xC0, (1 << 8 * 0xC0) - 1)
        pci.add(3, self.function)
        self.traced: list[str] = []
        self.pio, self.mmio = Bus("pio"), Bus("mmio", trace=self.traced.append)
        self.pio.attach(ADDRESS, 8, ConfigPorts(pci))
        self.mmio.attach(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, Ecam(pci))

    def select(self, *, bus: int = 0, slot: int = 0, function: int = 0, register: int = 0) -> None:
        self.pio.write(ADDRESS, 4, ENABLE | bus << 16 | slot << 11 | function << 8 | register)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_host_bridge_is_in_slot_0(machine: Machine) -> None:
    machine.select(register=8)
    assert machine.pio.read(DATA + 2, 2) == 0x0600
    assert machine.mmio.read(layout.PCI_ECAM + 10, 2) == 0x0600


def test_the_address_register_reads_back(machine: Machine) -> None:
    """Linux's `pci_check_type1` wants it."""
    machine.pio.write(ADDRESS + 3, 1, 1)
    machine.pio.write(ADDRESS, 4, ENABLE)
    assert machine.pio.read(ADDRESS, 4) == ENABLE
    machine.pio.write(ADDRESS, 2, 0x1234)
    assert machine.pio.read(ADDRESS, 4) == ENABLE
    assert machine.pio.read(ADDRESS, 2) == 0xFFFF


@pytest.mark.parametrize(("offset", "size"), [(o, s) for o, s in itertools.product(range(4), (1, 2, 4)) if o + s <= 4])
def test_every_part_of_a_register(machine: Machine, offset: int, size: int) -> None:
    expected = int.from_bytes(bytes(range(0x84 + offset, 0x84 + offset + size)), "little")
    machine.select(slot=3, register=0x84)
    assert machine.pio.read(DATA + offset, size) == expected
    assert machine.mmio.read(layout.PCI_ECAM + (3 << 15) + 0x84 + offset, size) == expected
    machine.pio.write(DATA + offset, size, 0)
    assert machine.function.get(0x84 + offset, size) == 0
    machine.mmio.write(layout.PCI_ECAM + (3 << 15) + 0x84 + offset, size, expected)
    assert machine.pio.read(DATA, 4) == 0x8786_8584


@pytest.mark.parametrize(("bus", "slot", "function"), [(0, 1, 0), (0, 3, 1), (0, 31, 7), (1, 3, 0), (255, 0, 0)])
def test_nobody_there(machine: Machine, bus: int, slot: int, function: int) -> None:
    machine.select(bus=bus, slot=slot, function=function)
    machine.pio.write(DATA, 4, 0)
    assert machine.pio.read(DATA, 4) == 0xFFFF_FFFF
    address = layout.PCI_ECAM + (bus << 20 | slot << 15 | function << 12)
    machine.mmio.write(address, 4, 0)
    assert machine.mmio.read(address, 4) == 0xFFFF_FFFF


def test_without_the_enable_bit_the_data_port_leads_nowhere(machine: Machine) -> None:
    machine.pio.write(ADDRESS, 4, 3 << 11 | 0x84)
    machine.pio.write(DATA, 4, 0)
    assert machine.pio.read(DATA, 4) == 0xFFFF_FFFF
    assert machine.function.get(0x84, 4) == 0x8786_8584


def test_accesses_across_the_data_port_go_nowhere(machine: Machine) -> None:
    machine.select(slot=3, register=0x84)
    assert machine.pio.read(DATA + 3, 2) == 0xFFFF
    assert machine.pio.read(DATA + 1, 4) == 0xFFFF_FFFF


def test_the_trace_names_the_function(machine: Machine) -> None:
    machine.mmio.read(layout.PCI_ECAM + (3 << 15) + 0x84, 1)
    assert machine.traced == ["mmio read  ecam.03.0+0x84 -> 0x84"]
