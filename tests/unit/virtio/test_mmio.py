"""The MMIO register face and the transport core behind it: an honest driver, then hostile ones."""

from __future__ import annotations

import os

import pytest

from tests.fakes.driver import MIB, Rig
from tests.unit.virtio.conftest import MakeRig
from vmm import layout
from vmm.bus import Bus
from vmm.virtio.chain import DescriptorChain, scatter
from vmm.virtio.device import TURN_BYTES, ActiveDevice, VirtioDevice
from vmm.virtio.spec import DescFlag, Feature, Interrupt, Status

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
NEEDS_RESET = Status.DEVICE_NEEDS_RESET
OWN_FEATURE = 1 << 3


class EchoDevice(VirtioDevice):
    """Copies what it can read to where it can write; remembers its life."""

    device_id = 42
    queue_sizes = (8, 256)
    features = OWN_FEATURE

    def __init__(self) -> None:
        super().__init__("echo0")
        self.life: list[str] = []
        self.active: ActiveDevice | None = None
        self.served = 0

    @property
    def config(self) -> bytes:
        return bytes(range(0x10, 0x1A))

    def activate(self, active: ActiveDevice) -> None:
        self.life.append("activate")
        self.active = active

    def notify(self, active: ActiveDevice, index: int) -> None:
        active.serve(index, self._echo)

    def reset(self) -> None:
        self.life.append("reset")
        self.active = None

    def _echo(self, _active: ActiveDevice, chain: DescriptorChain) -> int:
        self.served += 1
        return scatter(chain.writable, b"".join(chain.readable)) if chain.writable else 0


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice()


@pytest.fixture
def rig(device: EchoDevice, make_rig: MakeRig) -> Rig:
    return make_rig(device)


def echo(rig: Rig, text: bytes = b"hello") -> bytes:
    """One round through queue 0."""
    queue = rig.driver.queues[0]
    target = rig.arena.writable(len(text))
    head = queue.add([rig.arena.readable(text), target])
    rig.driver.kick(0)
    assert queue.collect() == [(head, len(text))]
    return rig.arena.content(target)


def broken(rig: Rig, device: EchoDevice, why: str) -> None:
    """Assert that the device was stopped, says so to its driver and once to the user, and lives again after a reset."""
    assert rig.driver.status == LIVE | NEEDS_RESET
    assert rig.driver.take_interrupt() & Interrupt.CONFIG_CHANGE
    assert rig.irq.pulses > 0
    assert len(rig.faults) == 1
    assert why in rig.faults[0]
    assert rig.faults[0].startswith("echo0: ")
    assert device.active is None
    served = device.served
    rig.driver.kick(0)
    assert (device.served, rig.driver.status, len(rig.faults)) == (served, LIVE | NEEDS_RESET, 1)
    rig.driver.start()
    assert echo(rig) == b"hello"


# An honest driver.


def test_identity(rig: Rig) -> None:
    read = rig.driver.read
    assert [read(offset) for offset in (0, 4, 8)] == [0x74726976, 2, 42]
    assert read(0x0C) == int.from_bytes(b"PYVM", "little")
    assert read(0xFC) == 0
    assert [read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4


def test_from_reset_to_a_buffer_and_back(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    assert rig.driver.status == LIVE
    assert echo(rig) == b"hello"
    assert rig.irq.pulses == 1
    assert rig.driver.take_interrupt() == Interrupt.USED_BUFFER
    assert rig.driver.read(0x60) == 0
    rig.driver.reset()
    assert device.life == ["activate", "reset"]
    assert rig.driver.status == 0
    assert rig.driver.read(0x44) == 0
    rig.driver.start()
    assert echo(rig, b"again") == b"again"
    assert rig.faults == []


def test_features_are_offered_in_halves(rig: Rig) -> None:
    ring = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX
    assert rig.driver.offered() == OWN_FEATURE | ring
    rig.driver.write(0x14, 2)
    assert rig.driver.read(0x10) == 0
    rig.driver.write(0x14, 0xFFFF_FFFF)
    assert rig.driver.read(0x10) == 0


def test_the_device_sees_what_was_negotiated(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start(Feature.VERSION_1)
    assert device.active is not None
    assert device.active.features == Feature.VERSION_1


def test_kicks_by_eventfd(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    queue = rig.driver.queues[1]
    queue.add([rig.arena.readable(b"x")])
    os.eventfd_write(rig.transport.kick_fds[1], 3)
    rig.run_kicks()
    assert device.served == 1
    with rig.transport.lock:
        rig.transport.kick_callback(1)()  # a stale event of the loop
    assert device.served == 1


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


def test_queues_that_do_not_exist(rig: Rig, device: EchoDevice) -> None:
    rig.driver.negotiate()
    for index in (2, 0xFFFF_FFFF):
        rig.driver.write(0x30, index)
        assert (rig.driver.read(0x34), rig.driver.read(0x44)) == (0, 0)
        rig.driver.program_queue(index, 8, 0, 0, 0)
        assert rig.driver.read(0x44) == 0
    rig.driver.status |= Status.DRIVER_OK
    rig.driver.kick(2)
    rig.driver.kick(0xFFFF_FFFF)
    assert rig.driver.status == LIVE
    assert device.served == 0
    assert rig.faults == []


def test_a_queue_that_was_not_enabled(rig: Rig, device: EchoDevice) -> None:
    rig.driver.negotiate()
    rig.driver.status |= Status.DRIVER_OK
    rig.driver.kick(0)
    assert (device.served, rig.faults, rig.driver.status) == (0, [], LIVE)


def test_queue_registers_after_reset(rig: Rig) -> None:
    rig.driver.write(0x30, 0)
    assert (rig.driver.read(0x34), rig.driver.read(0x44)) == (8, 0)
    rig.driver.write(0x30, 1)
    assert (rig.driver.read(0x34), rig.driver.read(0x44)) == (256, 0)


def test_the_trace_tells_the_status(make_rig: MakeRig, device: EchoDevice) -> None:
    rig = make_rig(device, tracing=True)
    rig.driver.start()
    assert "echo0 status ACKNOWLEDGE|DRIVER|FEATURES_OK: check features" in rig.traced
    assert "echo0 status ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK: activate" in rig.traced


# Batches.


@pytest.mark.parametrize("features", [None, Feature.VERSION_1])
def test_one_interrupt_a_batch(rig: Rig, device: EchoDevice, features: int | None) -> None:
    rig.driver.start(features)
    for _ in range(4):
        rig.driver.queues[1].add([rig.arena.readable(b"x")])
    rig.driver.kick(1)
    assert device.served == 4
    assert rig.irq.pulses == 1


def test_a_long_ring_gives_others_a_turn(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    queue = rig.driver.queues[1]
    data = rig.arena.readable(bytes(MIB))
    for _ in range(20):
        queue.add([data])
    rig.driver.kick(1)
    assert device.served == TURN_BYTES // MIB
    assert len(queue.collect()) == device.served, "what is done is seen at once"
    rig.run_kicks()
    assert device.served == 20
    assert len(queue.collect()) == 16


def test_kicks_left_over_from_before_a_reset(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    os.eventfd_write(rig.transport.kick_fds[0], 1)
    rig.driver.reset()
    rig.run_kicks()
    assert (device.served, rig.faults) == (0, [])


# Hostile drivers.


def test_legacy_drivers_are_refused(rig: Rig) -> None:
    assert not rig.driver.negotiate(OWN_FEATURE)
    assert rig.driver.status == Status.ACKNOWLEDGE | Status.DRIVER
    assert "refused" in rig.faults[0]


@pytest.mark.parametrize("bit", [0, 31, 33, 63])
def test_features_that_were_not_offered_are_refused(rig: Rig, bit: int) -> None:
    assert not rig.driver.negotiate(Feature.VERSION_1 | 1 << bit)
    assert rig.driver.negotiate(Feature.VERSION_1), "and it may try again"


def test_features_after_features_ok_do_not_count(rig: Rig, device: EchoDevice) -> None:
    rig.driver.negotiate(Feature.VERSION_1)
    rig.driver.accept((1 << 64) - 1)
    rig.driver.status |= Status.DRIVER_OK
    assert device.active is not None
    assert device.active.features == Feature.VERSION_1


@pytest.mark.parametrize("value", [4, 8, 12, 15, 2, 64, 0x10])
def test_status_out_of_order_is_ignored(rig: Rig, device: EchoDevice, value: int) -> None:
    rig.driver.status = value
    assert rig.driver.status == 0
    assert device.life == []
    assert rig.tally.counts["echo0.ignored"] == 1
    rig.driver.start()
    assert echo(rig) == b"hello"


def test_status_bits_cannot_be_cleared_one_by_one(rig: Rig) -> None:
    rig.driver.start()
    rig.driver.status = Status.ACKNOWLEDGE
    assert rig.driver.status == LIVE
    assert echo(rig) == b"hello"


def test_a_driver_that_gives_up(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    rig.driver.status |= Status.FAILED
    assert device.life == ["activate", "reset"]
    rig.driver.kick(0)
    rig.driver.start()
    assert echo(rig) == b"hello"


def test_queue_set_up_before_features_ok_is_ignored(rig: Rig) -> None:
    rig.driver.program_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert rig.driver.read(0x44) == 0


def test_a_live_queue_cannot_be_changed(rig: Rig) -> None:
    rig.driver.start()
    rig.driver.program_queue(0, 4, 0xDEAD_BEEF_0000, 1, 0xFFFF_FFFF_FFFF_FFFF)
    assert echo(rig) == b"hello"
    assert rig.faults == []


def test_an_enabled_queue_cannot_be_changed(rig: Rig) -> None:
    rig.driver.negotiate()
    rig.driver.set_up_queue(0)
    rig.driver.program_queue(0, 4, 0xDEAD_BEEF_0000, 1, 0xFFFF_FFFF_FFFF_FFFF)
    rig.driver.status |= Status.DRIVER_OK
    assert echo(rig) == b"hello"


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


@pytest.mark.parametrize(
    ("size", "areas"),
    [
        (8, (4 * MIB, 0x2000, 0x3000)),
        (8, (0x1000, (1 << 64) - 2, 0x3000)),
        (8, (0x1000, 0x2000, 0xC000_0000)),
        (8, (0x1008, 0x2000, 0x3000)),
        (8, (0x1000, 0x2001, 0x3000)),
        (8, (0x1000, 0x2000, 0x3002)),
        (0, (0x1000, 0x2000, 0x3000)),
        (7, (0x1000, 0x2000, 0x3000)),
        (16, (0x1000, 0x2000, 0x3000)),
        (0xFFFF_FFFF, (0x1000, 0x2000, 0x3000)),
    ],
)
def test_bad_queues(rig: Rig, device: EchoDevice, size: int, areas: tuple[int, int, int]) -> None:
    rig.driver.negotiate()
    rig.driver.program_queue(0, size, *areas)
    rig.driver.status |= Status.DRIVER_OK
    assert device.life == []
    broken(rig, device, "")


def test_avail_idx_jumps(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()[0].set_avail_idx(9)
    rig.driver.kick(0)
    broken(rig, device, "avail.idx jumped to 9, 9 ahead in a ring of 8")


def test_a_chain_that_loops(rig: Rig, device: EchoDevice) -> None:
    queue = rig.driver.start()[0]
    queue.set_descriptor(3, 0x1000, 8, DescFlag.NEXT, 3)
    queue.offer(3)
    rig.driver.kick(0)
    broken(rig, device, "loops")


def test_a_buffer_outside_ram(rig: Rig, device: EchoDevice) -> None:
    queue = rig.driver.start()[0]
    queue.set_descriptor(0, (1 << 64) - 8, 16, DescFlag.WRITE, 0)
    queue.offer(0)
    os.eventfd_write(rig.transport.kick_fds[0], 1)
    rig.run_kicks()
    broken(rig, device, "no guest RAM at 0xfffffffffffffff8+0x10")


def test_what_was_done_before_the_fault_counts(rig: Rig, device: EchoDevice) -> None:
    queue = rig.driver.start()[0]
    head = queue.add([rig.arena.writable(4)])
    queue.offer(200)
    rig.driver.kick(0)
    assert queue.collect() == [(head, 0)]
    broken(rig, device, "descriptor 200")


def test_a_fault_in_a_callback_of_the_loop_is_contained(rig: Rig, device: EchoDevice) -> None:
    queue = rig.driver.start()[0]
    active = device.active
    assert active is not None
    callback = active.guarded(lambda: device.notify(active, 0))
    queue.offer(99)
    with active.lock:
        callback()
    broken(rig, device, "descriptor 99")


def test_faults_without_end_do_not_flood_the_log(rig: Rig) -> None:
    for _ in range(1000):
        rig.driver.arena = rig.arena = type(rig.arena)(rig.memory, 0x1_0000, 4 * MIB)
        rig.driver.start()[0].offer(99)
        rig.driver.kick(0)
    assert len(rig.faults) < 10
    assert rig.tally.counts["echo0.faults"] == 1000


def test_a_driver_that_lives_on_after_needs_reset(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()[0].offer(99)
    rig.driver.kick(0)
    rig.driver.status = rig.driver.status  # read-modify-write of a bit that is set
    rig.driver.status |= Status.DRIVER_OK
    assert rig.driver.status == LIVE | NEEDS_RESET
    assert device.life == ["activate", "reset"]
