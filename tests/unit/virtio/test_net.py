"""The network device: frames both ways, merged buffers, and taps and drivers that misbehave."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes.driver import Arena, Buffer, Rig
from tests.fakes.loop import SteppedLoop
from tests.fakes.tap import SocketTap
from tests.unit.virtio.conftest import MakeRig
from vmm.virtio.net import FRAME_MAX, HEADER_SIZE, RX, TX, NetDevice, NetFeature
from vmm.virtio.spec import Feature, Status

MAC = bytes.fromhex("525400123456")
MTU = 1500
HEADER = bytes(12)
PLAIN = Feature.VERSION_1 | NetFeature.MAC
MERGING = PLAIN | NetFeature.MRG_RXBUF


@pytest.fixture
def loop() -> Iterator[SteppedLoop]:
    made = SteppedLoop()
    yield made
    made.close()


@pytest.fixture
def tap() -> Iterator[SocketTap]:
    made = SocketTap()
    yield made
    made.close()


@pytest.fixture
def rig(make_rig: MakeRig, tap: SocketTap, loop: SteppedLoop) -> Rig:
    return make_rig(NetDevice("net0", tap, loop, mac=MAC, mtu=MTU), tracing=True)


def frame(size: int = 60, fill: int = 0x5A) -> bytes:
    return bytes([fill]) * size


def header(*, flags: int = 0, gso: int = 0, buffers: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, 0, 0, 0, 0, buffers)


def offer(rig: Rig, *sizes: int) -> Buffer:
    """Give the device a receive buffer, cut into *sizes*; its first piece."""
    pieces = [rig.arena.writable(size) for size in sizes]
    rig.driver.queues[RX].add(pieces)
    return pieces[0]


def send(rig: Rig, *pieces: bytes) -> None:
    rig.driver.queues[TX].add([rig.arena.readable(piece) for piece in pieces])
    rig.driver.kick(TX)


def used(rig: Rig, index: int) -> list[int]:
    """The written lengths of what came back."""
    return [written for _, written in rig.driver.queues[index].collect()]


# Configuration.


def test_config_space(rig: Rig) -> None:
    assert rig.driver.read(0x08) == 1
    assert rig.driver.read(0x100, 8).to_bytes(8, "little") == MAC + b"\1\0"
    assert [rig.driver.read(0x100 + at, 1) for at in range(6)] == list(MAC)
    assert rig.driver.read(0x106, 2) == 1, "link up"
    assert rig.driver.read(0x10A, 2) == MTU


def test_offered_features(rig: Rig) -> None:
    assert rig.driver.offered() & 0xFF_FFFF == sum(
        getattr(NetFeature, name) for name in vars(NetFeature) if name.isupper()
    )


@pytest.mark.parametrize(
    ("features", "flags"),
    [
        (0, 0),
        (NetFeature.GUEST_CSUM, 1),
        (NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4, 3),
        (NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6, 7),
        (NetFeature.CSUM | NetFeature.HOST_TSO4, 0),
    ],
)
def test_offloads_follow_the_driver(rig: Rig, tap: SocketTap, features: int, flags: int) -> None:
    rig.driver.start(PLAIN | features)
    assert tap.offloads == [flags]


# Transmit.


@pytest.mark.parametrize("cut", [[72], [12, 60], [1, 11, 20, 40], [10, 62]])
def test_frames_go_out_as_they_are(rig: Rig, tap: SocketTap, cut: list[int]) -> None:
    rig.driver.start()
    whole = header(flags=1, gso=1) + bytes(range(60))
    pieces = [whole[sum(cut[:n]) : sum(cut[: n + 1])] for n in range(len(cut))]
    send(rig, *pieces)
    assert tap.received() == [whole]
    assert used(rig, TX) == [0]
    assert rig.tally.counts["net0.tx"] == 1
    assert rig.tally.counts["net0.bytes_sent"] == 60
    assert rig.traced[-1] == "net0 tx 60 bytes -> sent"


@pytest.mark.parametrize("size", [1, 11, 12, 25, FRAME_MAX + 1])
def test_what_is_no_frame_is_dropped(rig: Rig, tap: SocketTap, size: int) -> None:
    rig.driver.start()
    send(rig, bytes(size))
    assert tap.received() == []
    assert used(rig, TX) == [0]
    assert rig.tally.counts["net0.tx_dropped"] == 1
    send(rig, HEADER + frame())
    assert len(tap.received()) == 1
    assert rig.faults == []


def test_a_transmit_buffer_that_is_only_writable_is_dropped(rig: Rig) -> None:
    rig.driver.start()
    rig.driver.queues[TX].add([rig.arena.writable(100)])
    rig.driver.kick(TX)
    assert used(rig, TX) == [0]


def test_a_full_tap_drops(rig: Rig, tap: SocketTap) -> None:
    rig.driver.start()
    while tap.writev([memoryview(HEADER + frame())]):
        pass
    for _ in range(200):
        rig.driver.queues[TX].add([rig.arena.readable(HEADER + frame())])
    rig.driver.kick(TX)
    assert used(rig, TX) == [0] * 200
    assert rig.tally.counts["net0.tx_dropped"] == 200
    assert rig.irq.pulses == 1


# Receive.


@pytest.mark.parametrize("cut", [(1526,), (12, 1514), (10, 2, 60, 1454), (5, 6, 1, 1514)])
@pytest.mark.parametrize("features", [PLAIN, MERGING])
def test_a_frame_that_fits_one_buffer(
    rig: Rig, tap: SocketTap, loop: SteppedLoop, cut: tuple[int, ...], features: int
) -> None:
    rig.driver.start(features)
    start = offer(rig, *cut).gpa
    pieces = [size + (-size % 16) for size in cut]  # the arena aligns them
    rig.driver.kick(RX)
    tap.outside.send(header(buffers=0xFFFF) + bytes(range(100)))
    loop.settle()
    assert used(rig, RX) == [112]
    data = b"".join(rig.memory.read(start + sum(pieces[:n]), size) for n, size in enumerate(cut))
    assert data[:12] == header(buffers=1)
    assert data[12:112] == bytes(range(100))
    assert rig.irq.pulses == 1
    assert rig.tally.counts["net0.bytes_received"] == 100


def test_many_frames_one_interrupt(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    for _ in range(5):
        offer(rig, 1526)
        tap.outside.send(HEADER + frame())
    rig.driver.kick(RX)
    loop.settle()
    assert used(rig, RX) == [72] * 5
    assert rig.irq.pulses == 1


@pytest.mark.parametrize("size", [1000, 1001, 3000, 65_000])
def test_a_large_frame_is_spread_over_buffers(rig: Rig, tap: SocketTap, loop: SteppedLoop, size: int) -> None:
    rig.driver.start()
    buffers = [offer(rig, 600, 400) for _ in range(70)]
    whole = header(gso=1) + os.urandom(size - 12)
    tap.outside.send(whole)
    loop.settle()
    written = used(rig, RX)
    assert written == [1000] * (size // 1000) + ([size % 1000] if size % 1000 else [])
    got = b"".join(
        (rig.memory.read(buffer.gpa, 600) + rig.memory.read(buffer.gpa + 608, 400))[:length]
        for buffer, length in zip(buffers, written, strict=False)
    )
    assert got == header(gso=1, buffers=len(written)) + whole[12:]
    offer(rig, 1526)
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == [72], "and the unused buffers are used next"


def test_a_frame_waits_for_the_rest_of_its_buffers(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    whole = header(gso=1) + os.urandom(2500)
    buffers = [offer(rig, 1000)]
    tap.outside.send(whole)
    loop.settle()
    assert used(rig, RX) == []
    assert not loop.watches(tap.fileno())
    for _ in range(2):
        buffers.append(offer(rig, 1000))
        rig.driver.kick(RX)
    assert used(rig, RX) == [1000, 1000, 512]
    data = b"".join(rig.arena.content(buffer) for buffer in buffers)[:2512]
    assert data == header(gso=1, buffers=3) + whole[12:]


def test_a_frame_larger_than_the_ring_is_dropped(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start(size=4)
    for _ in range(4):
        offer(rig, 100)
    tap.outside.send(header(gso=1) + bytes(1000))
    tap.outside.send(header(gso=1) + bytes(388))
    loop.settle()
    assert used(rig, RX) == [100] * 4
    assert rig.tally.counts["net0.rx_dropped"] == 1


def test_without_merging_a_frame_too_large_is_dropped(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start(PLAIN)
    offer(rig, 100)
    tap.outside.send(HEADER + frame(200))
    tap.outside.send(HEADER + frame(60))
    loop.settle()
    assert used(rig, RX) == [72], "the buffer is used for the next frame"
    assert rig.tally.counts["net0.rx_dropped"] == 1


@pytest.mark.parametrize(("gso", "passes"), [(0, False), (1, True), (4, True)])
def test_the_mtu_holds_for_frames_that_are_not_cut(
    rig: Rig, tap: SocketTap, loop: SteppedLoop, gso: int, passes: bool
) -> None:
    rig.driver.start()
    offer(rig, 4096)
    tap.outside.send(header(gso=gso) + frame(14 + 4 + MTU + 1))
    loop.settle()
    assert bool(used(rig, RX)) == passes
    tap.outside.send(HEADER + frame(14 + 4 + MTU))
    offer(rig, 4096)
    rig.driver.kick(RX)
    loop.settle()
    assert used(rig, RX) == [HEADER_SIZE + 14 + 4 + MTU]


def test_frames_to_be_segmented_only_for_those_who_asked(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start(MERGING)
    offer(rig, 4096)
    tap.outside.send(header(gso=1) + frame(3000))
    tap.outside.send(HEADER + frame(60))
    loop.settle()
    assert used(rig, RX) == [72]


@pytest.mark.parametrize(("features", "flags"), [(PLAIN, 0), (PLAIN | NetFeature.GUEST_CSUM, 2)])
def test_checksum_flags_only_for_those_who_asked(
    rig: Rig, tap: SocketTap, loop: SteppedLoop, features: int, flags: int
) -> None:
    rig.driver.start(features)
    buffer = offer(rig, 200)
    tap.outside.send(header(flags=2) + frame())
    loop.settle()
    assert rig.arena.content(buffer)[0] == flags


@pytest.mark.parametrize("size", [1, 12, 25])
def test_what_is_no_frame_does_not_reach_the_guest(rig: Rig, tap: SocketTap, loop: SteppedLoop, size: int) -> None:
    rig.driver.start()
    offer(rig, 1526)
    tap.outside.send(bytes(size))
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == [72]


@pytest.mark.parametrize("features", [PLAIN, MERGING])
def test_buffers_that_are_none_come_back_empty(rig: Rig, tap: SocketTap, loop: SteppedLoop, features: int) -> None:
    rig.driver.start(features)
    offer(rig, 11)
    rig.driver.queues[RX].add([rig.arena.readable(bytes(1526))])
    offer(rig, 1526)
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == [0, 0, 72]
    assert rig.faults == []


# When the tap is watched.


def test_a_waiting_frame_does_not_make_the_loop_spin(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert not loop.watches(tap.fileno()), "nobody is there yet"
    rig.driver.start()
    loop.settle()  # raises if it spins
    assert not loop.watches(tap.fileno()), "the driver has no buffers yet"
    offer(rig, 1526)
    assert rig.driver.queues[RX].kick_wanted()
    rig.driver.kick(RX)
    loop.settle()
    assert used(rig, RX) == [72]
    rig.driver.reset()
    assert not loop.watches(tap.fileno())
    tap.outside.send(HEADER + frame())
    loop.settle()


@pytest.mark.parametrize("features", [None, MERGING])
def test_no_kicks_are_wanted_while_there_are_buffers(
    rig: Rig, tap: SocketTap, loop: SteppedLoop, features: int | None
) -> None:
    rig.driver.start(features)
    queue = rig.driver.queues[RX]
    offer(rig, 1526)
    queue.kick_wanted()
    rig.driver.kick(RX)
    for _ in range(10):
        offer(rig, 1526)
        assert not queue.kick_wanted()
        tap.outside.send(HEADER + frame())
        loop.settle()
    assert len(used(rig, RX)) == 10


def test_a_long_queue_gives_others_a_turn(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    for _ in range(100):
        offer(rig, 100)
    sent = 0
    while sent < 100:
        try:
            tap.outside.send(HEADER + frame())
        except BlockingIOError:
            break
        sent += 1
    loop.turn()
    first = len(used(rig, RX))
    assert first == min(sent, 64)
    loop.settle()
    assert first + len(used(rig, RX)) == sent


def test_a_reset_while_the_loop_waits_for_the_lock(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    offer(rig, 1526)
    tap.outside.send(HEADER + frame())
    callback = loop._watched[tap.fileno()][0]
    rig.driver.reset()
    with rig.transport.lock:
        callback()
    assert rig.faults == []


def test_a_reset_in_the_middle_of_a_frame(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    offer(rig, 100)
    tap.outside.send(header(gso=1) + bytes(1000))
    loop.settle()
    rig.driver.start()
    offer(rig, 1526)
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == [72]


def test_a_tap_that_is_deleted(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    offer(rig, 1526)
    tap.outside.send(HEADER + frame())
    tap.gone = True
    loop.settle()
    assert len(rig.faults) == 1
    assert rig.faults[0].startswith("net0: tap tap0: ")
    assert not loop.watches(tap.fileno())
    assert not rig.driver.status & Status.DEVICE_NEEDS_RESET
    send(rig, HEADER + frame())
    assert used(rig, TX) == [0]
    tap.gone = False
    rig.driver.kick(RX)
    loop.settle()
    assert used(rig, RX) == [72], "the buffer was not lost"


def test_a_hostile_receive_ring(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    queue = rig.driver.start()[RX]
    offer(rig, 1526)
    queue.offer(999)
    for _ in range(2):
        tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == [72], "what came before counts"
    assert rig.driver.status & Status.DEVICE_NEEDS_RESET
    assert len(rig.faults) == 1
    assert not loop.watches(tap.fileno())
    rig.driver.arena = rig.arena = Arena(rig.memory, 0x10_0000, rig.memory_bytes)
    rig.driver.start()
    offer(rig, 1526)
    loop.settle()
    assert used(rig, RX) == [72]


def test_no_receive_queue(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.negotiate()
    rig.driver.status |= Status.DRIVER_OK
    tap.outside.send(HEADER + frame())
    rig.driver.kick(RX)
    rig.driver.kick(TX)
    loop.settle()
    assert not loop.watches(tap.fileno())


def test_a_receive_queue_taken_back(rig: Rig, tap: SocketTap, loop: SteppedLoop) -> None:
    rig.driver.start()
    offer(rig, 1526)
    rig.driver.write(0x30, RX)
    rig.driver.write(0x44, 0)
    tap.outside.send(HEADER + frame())
    loop.settle()
    assert used(rig, RX) == []
    assert not loop.watches(tap.fileno())


def test_resets_while_the_io_thread_receives(rig: Rig, tap: SocketTap) -> None:
    """A vCPU thread resets and starts the device again and again while frames pour in."""
    loop = SteppedLoop()
    rig.device._loop = loop  # type: ignore[attr-defined]
    pouring = True

    def pour() -> None:
        while pouring:
            try:
                tap.outside.send(header(gso=1) + bytes(300))
            except BlockingIOError:
                time.sleep(0)

    threads = [threading.Thread(target=loop.run), threading.Thread(target=pour)]
    for thread in threads:
        thread.start()
    received = 0
    try:
        for turn in range(300):
            rig.driver.arena = rig.arena = Arena(rig.memory, 0x1_0000 if turn % 2 else 0x20_0000, rig.memory_bytes)
            rig.driver.start()
            for _ in range(16):
                offer(rig, 128)
            rig.driver.kick(RX)
            if turn % 3 == 0:
                time.sleep(0.001)
            received += len(used(rig, RX))
    finally:
        pouring = False
        rig.driver.reset()
        loop.stop()
        for thread in threads:
            thread.join()
        loop.close()
    assert received > 0
    assert rig.faults == []
