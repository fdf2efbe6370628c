"""Properties of the whole device: whatever a driver writes, wherever, the VM lives and a reset helps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.driver import MIB, Arena, Rig
from tests.fakes.loop import SteppedLoop
from tests.fakes.tap import SocketTap
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import BlkDevice
from vmm.virtio.device import VirtioDevice
from vmm.virtio.net import NetDevice
from vmm.virtio.net_python import PythonPath
from vmm.virtio.rng import RngDevice
from vmm.virtio.spec import Status

REGISTERS = (0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0xAC)
values = st.one_of(st.sampled_from([0, 1, 3, 8, 11, 15, 0x1000, 0x2000, 0x3000]), st.integers(0, 0xFFFF_FFFF))
accesses = st.tuples(
    st.one_of(st.sampled_from(REGISTERS), st.integers(0, 0x1FF)), st.sampled_from([1, 2, 4, 4, 4, 8]), values
)
#: Bytes strewn over the rings: (which area, offset in it, byte).
strewn = st.lists(st.tuples(st.sampled_from(["desc", "driver"]), st.integers(0, 150), st.integers(0, 255)), max_size=30)


class World:
    """Each kind of device, with what it needs around it, behind a *transport* as `Rig`'s."""

    def __init__(self, kind: str, transport: str = "mmio") -> None:
        self.loop, self.tap = SteppedLoop(), SocketTap()
        self.image = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in close()
        self.image.truncate(1 << 16)
        self.disk = RawDisk(self.image.name)
        make: dict[str, Callable[[], VirtioDevice]] = {
            "blk": lambda: BlkDevice("vda", self.disk, self.loop),
            "net": lambda: NetDevice(
                "net0", self.tap, self.loop, PythonPath(self.tap, self.loop), mac=b"\x52\x54\0\0\0\1", mtu=1500
            ),
            "rng": lambda: RngDevice("rng0"),
        }
        self.rig = Rig(make[kind](), memory_bytes=MIB, kind=transport)

    def frames(self) -> None:
        """Let frames come in, and the loop turn."""
        try:
            for size in (20, 100, 3000):
                self.tap.outside.send(bytes(size))
        except BlockingIOError:
            pass
        self.loop.settle()

    def works_after_reset(self) -> None:
        """Assert that an honest driver gets an answer now."""
        rig = self.rig
        rig.driver.arena = Arena(rig.memory, 0x1_0000, MIB)
        queue = rig.driver.start()[-1]
        assert rig.driver.status == 15
        queue.add([rig.driver.arena.readable(bytes(72)), rig.driver.arena.writable(513)])
        rig.driver.kick(len(rig.driver.queues) - 1)
        assert len(queue.collect()) == 1

    def close(self) -> None:
        self.rig.close()
        self.disk.close()
        self.image.close()
        self.tap.close()
        self.loop.close()


kinds = st.sampled_from(["blk", "net", "rng"])
relaxed = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@relaxed
@given(kind=kinds, script=st.lists(accesses, max_size=60))
def test_any_register_accesses(kind: str, script: list[tuple[int, int, int]]) -> None:
    """VIRTIO 1.2 §4.2.2.2: "The driver MUST NOT access memory locations not described in the table […], MUST NOT write
    to the read-only registers […] and MUST NOT read from the write-only registers […]. The driver MUST only use 32 bit
    wide and aligned reads and writes to access the control registers". One that does otherwise harms nobody.
    """
    world = World(kind)
    try:
        for offset, size, value in script:
            world.rig.driver.write(offset, value & ((1 << 8 * size) - 1), size)
            assert 0 <= world.rig.driver.read(offset, size) < 1 << 8 * size
        world.rig.run_kicks()
        world.frames()
        assert len(world.rig.faults) < 10
        world.works_after_reset()
    finally:
        world.close()


@relaxed
@given(kind=kinds, bytes_strewn=strewn, ahead=st.integers(0, 9), indirect=st.booleans(), event_idx=st.booleans())
def test_any_ring_contents(
    kind: str, bytes_strewn: list[tuple[str, int, int]], ahead: int, indirect: bool, event_idx: bool
) -> None:
    """VIRTIO 1.2 §2.1.2: "The device SHOULD set DEVICE_NEEDS_RESET when it enters an error state that a reset is
    needed. If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device configuration change
    notification to the driver."
    """
    world = World(kind)
    try:
        rig = world.rig
        features = rig.driver.offered() & ~((0 if event_idx else 1 << 29) | (0 if indirect else 1 << 28))
        for index, queue in enumerate(rig.driver.start(features, size=8)):
            for _ in range(3):
                queue.add([rig.arena.readable(os.urandom(72)), rig.arena.writable(600)])
            for area, offset, value in bytes_strewn:
                rig.memory.write(getattr(queue, area) + offset % (128 if area == "desc" else 22), bytes([value]))
            queue.set_avail_idx(queue.avail_idx + ahead - 3)
            rig.driver.kick(index)
            world.frames()
            rig.run_kicks()
        if rig.driver.status & Status.DEVICE_NEEDS_RESET:
            assert rig.driver.read(0x60) & 2
            assert rig.irq.pulses
            assert len(rig.faults) == 1
            assert rig.tally.counts[f"{rig.device.name}.faults"] == 1
        else:
            assert rig.faults == []
        world.works_after_reset()
    finally:
        world.close()
