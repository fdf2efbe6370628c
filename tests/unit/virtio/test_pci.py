"""The PCI register face (VIRTIO 1.2 §4.1); what it has in common with MMIO is in test_transport.py."""

from __future__ import annotations

import os

import pytest

from tests.fakes.driver import MIB
from tests.fakes.echo import EchoDevice, echo
from tests.fakes.pci import MESSAGE_ADDRESS, MESSAGE_DATA, FakeSlot, PciDriver
from tests.unit.virtio.conftest import MakeRig
from vmm import layout
from vmm.devices.pci import msix
from vmm.devices.pci.config import BAR0, STATUS, Command
from vmm.virtio.device import ActiveDevice
from vmm.virtio.interrupts import Wire
from vmm.virtio.spec import Interrupt, Status
from vmm.virtio.transport.pci import NO_VECTOR
from vmm.virtio.transport.pci_config import BAR_SIZE, NOTIFY, NOTIFY_STRIDE, CapabilityType

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
CONFIG, QUEUE0, QUEUE1 = ((MESSAGE_ADDRESS, MESSAGE_DATA + vector) for vector in range(3))


class WiredDevice(EchoDevice):
    """Keeps the wires that a worker outside Python would use."""

    def __init__(self) -> None:
        super().__init__()
        self.wires: dict[int, Wire] = {}

    def activate(self, active: ActiveDevice) -> None:
        super().activate(active)
        for index in range(len(self.queue_sizes)):
            self.rewire(active, index)

    def rewire(self, active: ActiveDevice, index: int) -> None:
        self.wires[index] = active.interrupts.wire(index)


class PciRig:
    """The device, the driver, and the slot between them."""

    def __init__(self, make_rig: MakeRig, kind: str) -> None:
        self.device = WiredDevice()
        self.rig = make_rig(self.device, kind=kind)
        assert isinstance(self.rig.driver, PciDriver)
        assert isinstance(self.rig.irq, FakeSlot)
        self.driver, self.slot = self.rig.driver, self.rig.irq

    def arrived(self) -> list[tuple[int, int]]:
        """The messages that came since the last call."""
        return self.slot.take()

    def use(self, index: int) -> None:
        """Let the device use a buffer of queue *index*."""
        self.driver.queues[index].add([self.rig.arena.readable(b"x")])
        self.driver.kick(index)


@pytest.fixture
def pci(make_rig: MakeRig) -> PciRig:
    return PciRig(make_rig, "pci")


@pytest.fixture
def intx(make_rig: MakeRig) -> PciRig:
    return PciRig(make_rig, "intx")


# What the driver finds.


def test_identity(pci: PciRig) -> None:
    """§4.1.2: vendor 0x1AF4, device 0x1040 + type, revision of at least 1, subsystem of at least 0x40."""
    read = pci.driver.read_config
    assert read(0x00) == 0x1AF4 | (0x1040 + 42) << 16
    assert read(0x08, 1) == 1
    assert read(0x2E, 2) >= 0x40
    assert read(0x0E, 1) == 0, "a header of type 0, one function"
    assert read(0x3C, 2) == 0x01_00 | layout.PCI_GSIS[0]


def test_every_capability_lies_in_the_bar(pci: PciRig) -> None:
    """§4.1.4: COMMON, NOTIFY, ISR and DEVICE, aligned, each inside BAR 0 and apart from the others."""
    regions = sorted(pci.driver.region(kind)[1:] for kind in (1, 2, 3, 4))
    (at,) = pci.driver.capabilities()[msix.CAPABILITY]
    vectors = (pci.driver.read_config(at + 2, 2) & 0x7FF) + 1
    assert vectors == 3
    regions += [(pci.driver.read_config(at + 4), 16 * vectors), (pci.driver.read_config(at + 8), 8)]
    for (start, size), (following, _) in zip(regions, [*regions[1:], (BAR_SIZE, 0)], strict=True):
        assert start % 4 == 0
        assert 0 < size <= following - start
    for at in pci.driver.capabilities()[0x09]:
        assert pci.driver.read_config(at + 4, 1) == 0
        assert pci.driver.read_config(at + 2, 1) in (16, 20)


def test_no_capability_can_be_written(pci: PciRig) -> None:
    before = [pci.driver.read_config(at) for at in range(0x40, 0x84, 4)]
    for at in range(0x40, 0x84, 4):
        pci.driver.write_config(at, 0)
    assert [pci.driver.read_config(at) for at in range(0x40, 0x84, 4)] == before


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(16))
def test_config_space_takes_every_width_anywhere(pci: PciRig, offset: int, size: int) -> None:
    _, start, _ = pci.driver.region(CapabilityType.DEVICE)
    address = pci.driver.bar() + start + offset
    expected = (bytes(range(0x10, 0x1A)) + bytes(16))[offset : offset + size]
    pci.slot.bus.write(address, size, 0xFF)
    assert pci.slot.bus.read(address, size) == int.from_bytes(expected, "little")


def test_registers_read_back(pci: PciRig) -> None:
    pci.driver.negotiate()
    for name, value in (("queue_select", 1), ("queue_size", 16), ("device_feature_select", 1)):
        pci.driver.put(name, value)
        assert pci.driver.get(name) == value
    for area, value in (("desc", 0x1_2345_6780), ("driver", 0x2_0000_0002), ("device", 0x3_0000_0004)):
        offset, _ = pci.driver.registers[area]
        pci.driver.write(offset, value & 0xFFFF_FFFF)
        pci.driver.write(offset + 4, value >> 32)
        assert pci.driver.read(offset) | pci.driver.read(offset + 4) << 32 == value
    pci.driver.put("driver_feature_select", 1)
    assert pci.driver.get("driver_feature") == 1
    assert pci.driver.get("num_queues") == 2
    assert pci.driver.get("generation") == 0


def test_a_queue_cannot_be_disabled_by_a_zero(pci: PciRig) -> None:
    """§4.1.4.3.2: "The driver MUST NOT write a 0 to queue_enable"."""
    pci.driver.start()
    pci.driver.put("queue_select", 0)
    pci.driver.put("queue_enable", 0)
    assert pci.driver.get("queue_enable") == 1
    assert echo(pci.rig) == b"hello"


# The BAR.


def test_nothing_answers_before_memory_is_enabled(pci: PciRig) -> None:
    base = pci.driver.bar()
    assert base == pci.slot.base
    pci.driver.command(off=Command.MEMORY)
    assert pci.slot.bus.find(base) is None
    assert pci.slot.doorbells == {}
    pci.driver.command(on=Command.MEMORY)
    assert pci.slot.bus.find(base) is not None


@pytest.mark.parametrize("base", [0xC800_0000, 0x1_4000_8000])
def test_a_moved_bar_takes_its_doorbells_along(pci: PciRig, base: int) -> None:
    pci.driver.start()
    old = pci.driver.bar()
    pci.driver.move_bar(base)
    assert pci.driver.bar() == base
    assert pci.slot.bus.find(old) is None
    fds = pci.rig.transport.kick_fds
    assert pci.slot.doorbells == {base + NOTIFY + NOTIFY_STRIDE * index: fd for index, fd in enumerate(fds)}
    assert pci.slot.doorbells[pci.driver.kick_address(1)] == fds[1]
    assert echo(pci.rig) == b"hello"


def test_a_bar_sized_while_it_answers_comes_back(pci: PciRig) -> None:
    pci.driver.start()
    base = pci.driver.bar()
    pci.driver.write_config(BAR0, 0xFFFF_FFFF)
    assert pci.driver.read_config(BAR0) == -BAR_SIZE & 0xFFFF_FFFF | 4
    pci.driver.write_config(BAR0, base)
    assert echo(pci.rig) == b"hello"


# Bus mastering.


def test_without_bus_mastering_a_device_is_not_set_going(pci: PciRig) -> None:
    pci.driver.negotiate()
    pci.driver.command(off=Command.BUS_MASTER)
    pci.driver.status |= Status.DRIVER_OK
    assert pci.device.life == []
    assert pci.driver.status & Status.DEVICE_NEEDS_RESET
    pci.driver.command(on=Command.BUS_MASTER)
    pci.driver.start()
    assert echo(pci.rig) == b"hello"


def test_a_device_that_loses_bus_mastering_stops(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.command(off=Command.BUS_MASTER)
    assert pci.device.life == ["activate", "reset"]
    assert pci.driver.status == LIVE | Status.DEVICE_NEEDS_RESET
    assert len(pci.rig.faults) == 1
    assert "no bus master" in pci.rig.faults[0]


def test_a_reset_device_may_lose_bus_mastering(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.reset()
    pci.driver.command(off=Command.BUS_MASTER)
    assert pci.rig.faults == []


# MSI-X.


def test_each_queue_and_the_configuration_have_a_message(pci: PciRig) -> None:
    pci.driver.start()
    pci.use(0)
    assert pci.arrived() == [QUEUE0]
    pci.use(1)
    assert pci.arrived() == [QUEUE1]
    pci.driver.queues[0].offer(99)
    pci.driver.kick(0)
    assert CONFIG in pci.arrived()


def test_a_masked_vector_is_pending(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.mask(1, 1)
    pci.use(0)
    pci.use(0)
    assert pci.arrived() == []
    assert pci.driver.pending() == 1 << 1
    pci.driver.mask(1, 0)
    assert pci.arrived() == [QUEUE0]
    assert pci.driver.pending() == 0


def test_a_worker_outside_python_is_masked_too(pci: PciRig) -> None:
    pci.driver.start()
    wire = pci.device.wires[1]
    assert wire.flag == 0
    os.eventfd_write(wire.fd, 1)
    assert pci.arrived() == [QUEUE1]
    pci.driver.set_msix(msix.ENABLE | msix.FUNCTION_MASK)
    os.eventfd_write(wire.fd, 1)
    assert pci.driver.pending() == 1 << 2
    pci.driver.set_msix(msix.ENABLE)
    assert pci.arrived() == [QUEUE1]


def test_vectors_that_do_not_exist_read_back_as_none(pci: PciRig) -> None:
    """§4.1.5.1.2.1: the device MUST return NO_VECTOR if mapping fails; the driver MUST verify."""
    for name in ("config_vector", "queue_vector"):
        for vector in (3, 0x7FF, 0xFFFE):
            pci.driver.put(name, vector)
            assert pci.driver.get(name) == NO_VECTOR
        pci.driver.put(name, 2)
        assert pci.driver.get(name) == 2
    pci.driver.put("queue_select", 2)
    pci.driver.put("queue_vector", 0)
    assert pci.driver.get("queue_vector") == NO_VECTOR


def test_a_queue_without_a_vector_does_not_interrupt(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.put("queue_select", 0)
    pci.driver.put("queue_vector", NO_VECTOR)
    assert pci.device.wires[0].fd == -1
    pci.use(0)
    assert pci.arrived() == []
    assert pci.driver.pending() == 0


def test_queues_can_share_a_vector(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.put("queue_select", 1)
    pci.driver.put("queue_vector", 1)
    assert pci.device.wires[1].fd == pci.device.wires[0].fd
    pci.use(1)
    assert pci.arrived() == [QUEUE0]


def test_reset_forgets_vectors_and_what_was_pending(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.mask(1, 1)
    pci.use(0)
    pci.driver.reset()
    assert pci.driver.pending() == 0
    assert pci.driver.get("config_vector") == NO_VECTOR
    assert pci.driver.queue_register(0, "queue_vector") == NO_VECTOR
    pci.driver.mask(1, 0)
    assert pci.arrived() == []


def test_a_configuration_change_shows_in_the_isr_with_messages_too(pci: PciRig) -> None:
    """§4.1.4.5.1: "The device MUST set the Device Configuration Interrupt bit in ISR status before sending"."""
    pci.driver.start()
    pci.use(0)
    assert pci.driver.read_isr() == 0
    pci.driver.queues[0].offer(99)
    pci.driver.kick(0)
    assert pci.driver.read_isr() & Interrupt.CONFIG_CHANGE
    assert pci.driver.read_isr() == 0
    assert not pci.slot.line_connected()


# INTx.


def test_the_isr_is_cleared_by_reading(intx: PciRig) -> None:
    intx.driver.start()
    intx.use(0)
    intx.slot.collect()
    assert intx.slot.asserted
    assert intx.driver.read_config(STATUS, 2) & 1 << 3
    assert intx.driver.read_isr() == Interrupt.USED_BUFFER
    assert intx.driver.read_isr() == 0
    assert not intx.driver.read_config(STATUS, 2) & 1 << 3


def test_the_line_is_asserted_again_while_a_cause_is_left(intx: PciRig) -> None:
    intx.driver.start()
    intx.use(0)
    for _ in range(3):
        intx.slot.end_interrupt()
        with intx.rig.transport.lock:
            intx.driver.pci.resample()
        intx.slot.collect()
        assert intx.slot.asserted
    assert intx.driver.take_interrupt() == Interrupt.USED_BUFFER
    intx.slot.collect()
    assert not intx.slot.asserted
    with intx.rig.transport.lock:
        intx.driver.pci.resample()  # a stale event of the loop
    assert intx.slot.pulses == 4


def test_intx_disable_holds_the_line_back(intx: PciRig) -> None:
    intx.driver.start()
    intx.driver.command(on=Command.INTX_DISABLE)
    intx.use(0)
    intx.slot.collect()
    assert not intx.slot.line_connected()
    assert intx.driver.read_config(STATUS, 2) & 1 << 3, "the status bit does not depend on it"
    intx.driver.command(off=Command.INTX_DISABLE)
    assert intx.driver.take_interrupt() == Interrupt.USED_BUFFER


def test_what_was_seen_meanwhile_does_not_interrupt_when_intx_is_enabled(intx: PciRig) -> None:
    intx.driver.start()
    intx.driver.command(on=Command.INTX_DISABLE)
    intx.use(0)
    intx.driver.read_isr()
    intx.driver.command(off=Command.INTX_DISABLE)
    assert intx.slot.pulses == 0


def test_a_worker_outside_python_sets_the_cause_and_asserts_the_line(intx: PciRig) -> None:
    intx.driver.start()
    wire = intx.device.wires[0]
    assert wire.flag
    assert intx.slot.line is not None
    assert wire.fd == intx.slot.line[0]


def test_the_line_belongs_to_live_devices_only(intx: PciRig) -> None:
    assert not intx.slot.line_connected()
    intx.driver.start()
    assert intx.slot.line_connected()
    intx.driver.reset()
    assert not intx.slot.line_connected()


def test_a_live_device_is_told_when_msix_comes_and_goes(intx: PciRig) -> None:
    intx.driver.start()
    line = intx.device.wires[0].fd
    intx.driver.set_msix(msix.ENABLE)
    assert [wire.fd for wire in intx.device.wires.values()] == [-1, -1]
    assert not intx.slot.line_connected()
    intx.driver.set_msix(0)
    assert [wire.fd for wire in intx.device.wires.values()] == [line, line]
    assert echo(intx.rig) == b"hello"
    assert intx.driver.take_interrupt() == Interrupt.USED_BUFFER


# The window in configuration space.


def window(pci: PciRig, bar: int, offset: int, length: int) -> int:
    """Point the window at *length* bytes at *offset*; the offset of its data."""
    at = next(at for at in pci.driver.capabilities()[0x09] if pci.driver.read_config(at + 3, 1) == CapabilityType.PCI)
    pci.driver.write_config(at + 4, bar, 1)
    pci.driver.write_config(at + 8, offset)
    pci.driver.write_config(at + 12, length)
    return at + 16


@pytest.mark.parametrize("memory", [True, False])
def test_the_window_reaches_the_registers(pci: PciRig, memory: bool) -> None:
    """§4.1.4.9.1: an access of pci_cfg_data is one of cap.length bytes at cap.offset, memory enabled or not."""
    pci.driver.command(on=Command.MEMORY if memory else 0, off=0 if memory else Command.MEMORY)
    status = window(pci, 0, 0x14, 1)
    pci.driver.write_config(status, Status.ACKNOWLEDGE, 1)
    assert pci.driver.read_config(status, 1) == Status.ACKNOWLEDGE
    assert pci.driver.read_config(window(pci, 0, 0x12, 2), 2) == 2
    assert pci.driver.read_config(window(pci, 0, 0x2000, 4)) == 0x1312_1110


def test_the_window_kicks(pci: PciRig) -> None:
    pci.driver.start()
    pci.driver.queues[1].add([pci.rig.arena.readable(b"x")])
    pci.driver.write_config(window(pci, 0, NOTIFY + NOTIFY_STRIDE, 2), 1, 2)
    assert pci.device.served == 1


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(1, 0x14, 1), (0xFF, 0x14, 1), (0, 0x14, 0), (0, 0x14, 3), (0, 0x14, 8), (0, 0x14, 0xFFFF_FFFF),
     (0, 0x12, 4), (0, BAR_SIZE, 1), (0, 0xFFFF_FFFF, 1), (0, 0xFFFF_FFFC, 4)],
)  # fmt: skip
def test_a_window_that_leads_nowhere(pci: PciRig, bar: int, offset: int, length: int) -> None:
    data = window(pci, bar, offset, length)
    pci.driver.write_config(data, 0xFFFF_FFFF)
    assert pci.driver.read_config(data) == 0xFFFF_FFFF, "it is mere storage"
    assert pci.driver.status == 0


def test_everything_is_named_in_traces(pci: PciRig) -> None:
    names = [pci.driver.pci.register_name(at) for at in (0x14, 0x1000, 0x2004, 0x3004, 0x400C, 0x5000, 0x6000)]
    assert names == ["device_status", "isr+0x0", "config+0x4", "notify+0x4", "msix_table+0xc", "msix_pba+0x0",
                     "0x6000+0x0"]  # fmt: skip


def test_faults_in_the_ring_are_contained_with_memory_off(pci: PciRig) -> None:
    pci.driver.start()[0].set_descriptor(0, 4 * MIB, 16, 0, 0)
    pci.driver.queues[0].offer(0)
    pci.driver.command(off=Command.MEMORY)
    os.eventfd_write(pci.rig.transport.kick_fds[0], 1)
    pci.rig.run_kicks()
    assert len(pci.rig.faults) == 1
    assert CONFIG in pci.arrived()
