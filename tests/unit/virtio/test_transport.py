"""The transport core behind each register face: an honest driver, then hostile ones."""

from __future__ import annotations

import os

import pytest

from tests.fakes.driver import MIB, Rig
from tests.fakes.echo import OWN_FEATURE, EchoDevice, echo
from tests.unit.virtio.conftest import MakeRig
from vmm.virtio.device import TURN_BYTES
from vmm.virtio.spec import DescFlag, Feature, Interrupt, Status

LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
NEEDS_RESET = Status.DEVICE_NEEDS_RESET


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice()


@pytest.fixture(params=["mmio", "pci", "intx"])
def rig(device: EchoDevice, make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    return make_rig(device, kind=request.param)


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


def test_from_reset_to_a_buffer_and_back(rig: Rig, device: EchoDevice) -> None:
    rig.driver.start()
    assert rig.driver.status == LIVE
    assert echo(rig) == b"hello"
    assert rig.irq.pulses == 1
    assert rig.driver.take_interrupt() == Interrupt.USED_BUFFER
    assert rig.driver.take_interrupt() == 0
    rig.driver.reset()
    assert device.life == ["activate", "reset"]
    assert rig.driver.status == 0
    assert rig.driver.queue_register(0, "queue_enable") == 0
    rig.driver.start()
    assert echo(rig, b"again") == b"again"
    assert rig.faults == []


def test_features_are_offered_in_halves(rig: Rig) -> None:
    ring = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX
    assert rig.driver.offered() == OWN_FEATURE | ring
    for half in (2, 0xFFFF_FFFF):
        rig.driver.put("device_feature_select", half)
        assert rig.driver.get("device_feature") == 0


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


def test_queues_that_do_not_exist(rig: Rig, device: EchoDevice) -> None:
    rig.driver.negotiate()
    for index in (2, 0xFFFF):
        assert rig.driver.queue_register(index, "queue_size_max") == 0
        assert rig.driver.queue_register(index, "queue_enable") == 0
        rig.driver.program_queue(index, 8, 0, 0, 0)
        assert rig.driver.queue_register(index, "queue_enable") == 0
    rig.driver.status |= Status.DRIVER_OK
    rig.driver.kick(2)
    rig.driver.kick(0xFFFF)
    assert rig.driver.status == LIVE
    assert device.served == 0
    assert rig.faults == []


def test_a_queue_that_was_not_enabled(rig: Rig, device: EchoDevice) -> None:
    rig.driver.negotiate()
    rig.driver.status |= Status.DRIVER_OK
    rig.driver.kick(0)
    assert (device.served, rig.faults, rig.driver.status) == (0, [], LIVE)


def test_queue_registers_after_reset(rig: Rig) -> None:
    for index, size in enumerate((8, 256)):
        assert rig.driver.queue_register(index, "queue_size_max") == size
        assert rig.driver.queue_register(index, "queue_enable") == 0


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
    assert rig.driver.queue_register(0, "queue_enable") == 0


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
    rig.driver.set_up_interrupts()
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
