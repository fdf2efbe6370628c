"""Workers outside Python on PCI: their interrupts take the way that the driver has chosen last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.blk import header, make_blk
from tests.fakes.driver import Rig
from tests.fakes.loop import SteppedLoop
from tests.fakes.native import missing
from tests.fakes.pci import MESSAGE_ADDRESS, MESSAGE_DATA, FakeSlot, PciDriver
from tests.waiting import until
from vmm.devices.pci import msix
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestType
from vmm.virtio.spec import Interrupt
from vmm.virtio.transport.pci import NO_VECTOR

pytestmark = pytest.mark.skipif(bool(missing), reason=missing)

CONFIG, QUEUE = ((MESSAGE_ADDRESS, MESSAGE_DATA + vector) for vector in range(2))


class NativeDisk:
    """A disk of the native engine, driven over PCI."""

    def __init__(self, disk: RawDisk, kind: str) -> None:
        self.loop = SteppedLoop()
        self.rig = Rig(make_blk("native", disk, self.loop), kind=kind)
        assert isinstance(self.rig.driver, PciDriver)
        assert isinstance(self.rig.irq, FakeSlot)
        self.driver, self.slot = self.rig.driver, self.rig.irq
        self.driver.start()

    def use(self) -> None:
        """Let the worker serve one request, and come to rest."""
        arena, queue = self.rig.arena, self.driver.queues[0]
        queue.add([arena.readable(header(RequestType.IN)), arena.writable(513)])
        self.driver.kick(0)
        until(lambda: len(queue.collect()) == 1)

    def messages(self) -> list[tuple[int, int]]:
        """Those that came since the last call."""
        return self.slot.take()

    def close(self) -> None:
        self.rig.close()
        self.loop.close()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NativeDisk]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 16))
    raw = RawDisk(str(image))
    made = NativeDisk(raw, request.param)
    yield made
    made.close()
    raw.close()


@pytest.mark.parametrize("disk", ["pci"], indirect=True)
def test_a_vector_that_is_masked_and_changed(disk: NativeDisk) -> None:
    disk.use()
    until(lambda: disk.messages() == [QUEUE])
    disk.driver.mask(1, 1)
    disk.use()
    until(lambda: disk.driver.pending() == 1 << 1)
    disk.driver.mask(1, 0)
    assert disk.messages() == [QUEUE]
    disk.driver.put("queue_select", 0)
    disk.driver.put("queue_vector", 0)
    disk.use()
    until(lambda: disk.messages() == [CONFIG])
    disk.driver.put("queue_vector", NO_VECTOR)
    disk.use()
    assert disk.messages() == []
    assert disk.driver.pending() == 0


@pytest.mark.parametrize("disk", ["intx"], indirect=True)
def test_the_line_and_then_messages(disk: NativeDisk) -> None:
    disk.use()
    until(lambda: disk.slot.pulses == 1)
    assert disk.driver.take_interrupt() == Interrupt.USED_BUFFER
    disk.driver.messages = True
    disk.driver.set_up_interrupts()
    disk.use()
    until(lambda: disk.messages() == [QUEUE])
    disk.driver.set_msix(0)
    disk.driver.command(off=1 << 10)
    disk.driver.messages = False
    disk.use()
    until(lambda: disk.slot.pulses >= 3)
    assert disk.driver.take_interrupt() == Interrupt.USED_BUFFER


@pytest.mark.parametrize("disk", ["pci"], indirect=True)
def test_enabling_msix_is_what_counts(disk: NativeDisk) -> None:
    disk.driver.set_msix(msix.ENABLE | msix.FUNCTION_MASK)
    disk.use()
    until(lambda: disk.driver.pending() == 1 << 1)
    assert disk.messages() == []
