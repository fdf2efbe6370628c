"""Properties of a device on PCI: whatever a driver writes, to registers or configuration space, the VM lives."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.pci import FakeSlot, PciDriver
from tests.property.test_virtio_mmio import World, kinds, strewn
from vmm.virtio.spec import Status
from vmm.virtio.transport.pci_config import BAR_SIZE, COMMON, ISR, NOTIFY, PENDING, TABLE

#: Where a page of BAR 0 has registers, and what a careless driver finds beside them.
offsets = st.one_of(
    st.integers(0, 0x3F).map(lambda at: COMMON + at),
    st.integers(0, 0x40).map(lambda at: TABLE + at),
    st.sampled_from([ISR, NOTIFY, NOTIFY + 4, NOTIFY + 0xFFC, PENDING]),
    st.integers(0, BAR_SIZE - 8),
)
values = st.one_of(
    st.sampled_from([0, 1, 2, 3, 8, 11, 15, 0x1000, 0x2000, 0x3000, 0xC000, 0xFFFF]), st.integers(0, 0xFFFF_FFFF)
)
registers = st.tuples(st.just("bar"), offsets, st.sampled_from([1, 2, 4, 8]), values)
#: The command register, the BAR, the window and the MSI-X control are where it hurts.
configuration = st.tuples(
    st.just("config"),
    st.one_of(st.sampled_from([0x04, 0x06, 0x10, 0x14, 0x3C]), st.integers(0, 0xFF)),
    st.sampled_from([1, 2, 4]),
    st.one_of(values, st.sampled_from([0x0006, 0x0406, 0xC002_0000, 0x8000_0000])),
)
interrupts = st.sampled_from(["pci", "intx"])
relaxed = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def drivers(world: World) -> tuple[PciDriver, FakeSlot]:
    assert isinstance(world.rig.driver, PciDriver)
    assert isinstance(world.rig.irq, FakeSlot)
    return world.rig.driver, world.rig.irq


@relaxed
@given(kind=kinds, how=interrupts, script=st.lists(st.one_of(registers, configuration), max_size=60))
def test_any_accesses(kind: str, how: str, script: list[tuple[str, int, int, int]]) -> None:
    """VIRTIO 1.2 §4.1.3.1: "the driver MUST access each field using the “natural” access method". One that does
    otherwise, and writes what it likes to its configuration space too, harms nobody.
    """
    world = World(kind, how)
    try:
        driver, slot = drivers(world)
        home = driver.bar()
        for where, offset, size, value in script:
            masked = value & ((1 << 8 * size) - 1)
            if where == "bar":
                slot.bus.write(driver.bar() + offset, size, masked)
                assert 0 <= slot.bus.read(driver.bar() + offset, size) < 1 << 8 * size
            elif offset % 4 + size <= 4:
                driver.write_config(offset, masked, size)
                assert 0 <= driver.read_config(offset, size) < 1 << 8 * size
        world.rig.run_kicks()
        world.frames()
        slot.end_interrupt()
        with driver.pci.lock:
            driver.pci.resample()
        assert len(world.rig.faults) < 10
        driver.set_msix(0)
        driver.command(off=0xFFFF)
        driver.move_bar(home)
        world.works_after_reset()
    finally:
        world.close()


@relaxed
@given(kind=kinds, how=interrupts, bytes_strewn=strewn, ahead=st.integers(0, 9), masked=st.booleans())
def test_any_ring_contents(
    kind: str, how: str, bytes_strewn: list[tuple[str, int, int]], ahead: int, masked: bool
) -> None:
    """VIRTIO 1.2 §2.1.2, by each kind of interrupt: a device that asks for a reset tells its driver so."""
    world = World(kind, how)
    try:
        rig = world.rig
        driver, slot = drivers(world)
        for index, queue in enumerate(driver.start(size=8)):
            for _ in range(3):
                queue.add([rig.arena.readable(os.urandom(72)), rig.arena.writable(600)])
            for area, offset, value in bytes_strewn:
                rig.memory.write(getattr(queue, area) + offset % (128 if area == "desc" else 22), bytes([value]))
            queue.set_avail_idx(queue.avail_idx + ahead - 3)
            if masked and how == "pci":
                driver.mask(0, 1)
            driver.kick(index)
            world.frames()
            rig.run_kicks()
        if driver.status & Status.DEVICE_NEEDS_RESET:
            assert len(rig.faults) == 1
            if masked and how == "pci":
                assert driver.pending() & 1
                driver.mask(0, 0)
            assert driver.take_interrupt() & 2
            assert slot.pulses
        else:
            assert rig.faults == []
        world.works_after_reset()
    finally:
        world.close()
