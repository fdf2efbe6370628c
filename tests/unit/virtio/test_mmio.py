"""The MMIO register face; what it has in common with PCI is in test_transport.py."""

from __future__ import annotations

import pytest

from tests.fakes.driver import Rig
from tests.fakes.echo import EchoDevice
from tests.unit.virtio.conftest import MakeRig
from vmm import layout
from vmm.bus import Bus
from vmm.virtio.spec import Status

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def rig(device: EchoDevice, make_rig: MakeRig) -> Rig:
    return make_rig(device)


def test_identity(rig: Rig) -> None:
    read = rig.driver.read
    assert [read(offset) for offset in (0, 4, 8)] == [0x74726976, 2, 42]
    assert read(0x0C) == int.from_bytes(b"PYVM", "little")
    assert read(0xFC) == 0
    assert [read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4


def test_on_the_bus(rig: Rig) -> None:
    traced: list[str] = []
    bus = Bus("mmio", trace=traced.append)
    bus.attach(layout.VIRTIO_MMIO_BASE, layout.VIRTIO_MMIO_SIZE, rig.transport)
    bus.write(layout.VIRTIO_MMIO_BASE + 0x70, 4, 1)
    assert bus.read(layout.VIRTIO_MMIO_BASE + 0x70, 4) == 1
    assert bus.read(layout.VIRTIO_MMIO_BASE + 0x101, 1) == 0x11
    assert traced == [
        "mmio write echo0.Status <- 0x1",
        "mmio read  echo0.Status -> 0x1",
        "mmio read  echo0.Config+0x1 -> 0x11",
    ]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(16))
def test_config_space_takes_every_width_anywhere(rig: Rig, offset: int, size: int) -> None:
    expected = (bytes(range(0x10, 0x1A)) + bytes(16))[offset : offset + size]
    assert rig.driver.read(0x100 + offset, size) == int.from_bytes(expected, "little")
    rig.driver.write(0x100 + offset, 0xFF, size)
    assert rig.driver.read(0x100 + offset, size) == int.from_bytes(expected, "little")


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("offset", [0x00, 0x44, 0x60, 0x70, 0x71])
def test_registers_are_32_bits_wide(rig: Rig, offset: int, size: int) -> None:
    assert rig.driver.read(offset, size) == (1 << 8 * size) - 1
    rig.driver.write(offset, 1, size)
    assert rig.driver.status == 0


@pytest.mark.parametrize("offset", [0x02, 0x18, 0x28, 0x40, 0x54, 0x5C, 0x68, 0xC0, 0xC4, 0xF8, 0xFE])
def test_no_register_here(rig: Rig, offset: int) -> None:
    rig.driver.write(offset, 1)
    assert rig.driver.read(offset) == 0xFFFF_FFFF


@pytest.mark.parametrize("offset", [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4])
def test_write_only_registers(rig: Rig, offset: int) -> None:
    assert rig.driver.read(offset) == 0xFFFF_FFFF


def test_a_queue_taken_back_is_left_alone(rig: Rig, device: EchoDevice) -> None:
    queue = rig.driver.start()[0]
    rig.driver.write(0x30, 0)
    rig.driver.write(0x44, 0)
    assert rig.driver.read(0x44) == 0
    queue.add([rig.arena.writable(4)])
    rig.driver.kick(0)
    assert queue.collect() == []
    assert (device.served, rig.faults, rig.driver.status) == (0, [], LIVE)
    rig.driver.queues[1].add([rig.arena.readable(b"x")])
    rig.driver.kick(1)
    assert device.served == 1, "the other queue goes on"
