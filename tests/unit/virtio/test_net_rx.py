"""Receiving, by both engines: buffers of all shapes, merged buffers, what is filtered, and taps that misbehave."""

from __future__ import annotations

import threading
import time

import pytest

from tests.fakes.card import MTU, RX, TX, Card, frame, header
from tests.fakes.driver import Arena
from tests.fakes.loop import SteppedLoop
from tests.unit.virtio.conftest import MakeCard
from vmm.config import NetLimits, Rate
from vmm.virtio.net_frame import HEADER_SIZE, NetFeature
from vmm.virtio.spec import Feature, Status

HEADER = header()
PLAIN = Feature.VERSION_1 | NetFeature.MAC
MERGING = PLAIN | NetFeature.MRG_RXBUF


@pytest.mark.parametrize("cut", [(1526,), (12, 1514), (10, 2, 60, 1454), (5, 6, 1, 1514)])
@pytest.mark.parametrize("features", [PLAIN, MERGING])
def test_a_frame_that_fits_one_buffer(card: Card, cut: tuple[int, ...], features: int) -> None:
    card.driver.start(features)
    start = card.offer(*cut).gpa
    pieces = [size + (-size % 16) for size in cut]  # the arena aligns them
    card.kick(RX)
    sent = frame(100)
    card.arrive(header(buffers=0xFFFF) + sent)
    assert card.used(RX) == [112]
    data = b"".join(card.memory.read(start + sum(pieces[:n]), size) for n, size in enumerate(cut))
    assert data[:112] == header(buffers=1) + sent
    assert data[112:].strip(b"\xcc") == b"", "no more is written than that"
    assert card.irq.pulses == 1
    assert card.counts()["net0.bytes_received"] == 100


def test_many_frames_one_interrupt(python_card: Card) -> None:
    card = python_card
    card.driver.start()
    for _ in range(5):
        card.offer(1526)
        card.tap.outside.send(HEADER + frame())
    card.kick(RX)
    assert card.used(RX) == [72] * 5
    assert card.irq.pulses == 1


@pytest.mark.parametrize("size", [1000, 1001, 3000, 65_000])
def test_a_large_frame_is_spread_over_buffers(card: Card, size: int) -> None:
    card.driver.start()
    for _ in range(3):  # the native engine reads the second one right into the buffers
        buffers = [card.offer(600, 400) for _ in range(70)]
        card.kick(RX)
        whole = header(gso=1) + frame(size - 12)
        card.arrive(whole)
        written = card.used(RX)
        assert written == [1000] * (size // 1000) + ([size % 1000] if size % 1000 else [])
        got = b"".join(
            (card.memory.read(buffer.gpa, 600) + card.memory.read(buffer.gpa + 608, 400))[:length]
            for buffer, length in zip(buffers, written, strict=False)
        )
        assert got == header(gso=1, buffers=len(written)) + whole[12:]
        card.arrive(*[HEADER + frame()] * (70 - len(written)))
        assert card.used(RX) == [72] * (70 - len(written)), "and the unused buffers are used next"
        card.driver.arena = card.arena = card.driver.queues[RX].arena = Arena(card.memory, 0x10_0000, card.memory_bytes)


def test_a_frame_waits_for_the_rest_of_its_buffers(card: Card) -> None:
    card.driver.start()
    whole = header(gso=1) + frame(2500)
    buffers = [card.offer(1000)]
    card.kick(RX)
    card.arrive(whole)
    assert card.used(RX) == []
    for _ in range(2):
        buffers.append(card.offer(1000))
        card.kick(RX)
    assert card.used(RX) == [1000, 1000, 512]
    data = b"".join(card.arena.content(buffer) for buffer in buffers)[:2512]
    assert data == header(gso=1, buffers=3) + whole[12:]


def test_a_frame_larger_than_the_ring_is_dropped(card: Card) -> None:
    card.driver.start(size=4)
    for _ in range(4):
        card.offer(100)
    card.kick(RX)
    card.arrive(header(gso=1) + frame(1000), header(gso=1) + frame(388))
    assert card.used(RX) == [100] * 4
    assert card.counts()["net0.rx_dropped"] == 1


def test_without_merging_a_frame_too_large_is_dropped(card: Card) -> None:
    card.driver.start(PLAIN)
    card.offer(100)
    card.kick(RX)
    card.arrive(HEADER + frame(200), HEADER + frame(60))
    assert card.used(RX) == [72], "the buffer is used for the next frame"
    assert card.counts()["net0.rx_dropped"] == 1


@pytest.mark.parametrize(("gso", "passes"), [(0, False), (1, True), (4, True), (5, True)])
def test_the_mtu_holds_for_frames_that_are_not_cut(card: Card, gso: int, passes: bool) -> None:
    card.driver.start()
    card.offer(4096)
    card.kick(RX)
    card.arrive(header(gso=gso) + frame(14 + 4 + MTU + 1))
    assert bool(card.used(RX)) == passes
    card.offer(4096)
    card.kick(RX)
    card.arrive(HEADER + frame(14 + 4 + MTU))
    assert card.used(RX) == [HEADER_SIZE + 14 + 4 + MTU]


def test_frames_to_be_segmented_only_for_those_who_asked(card: Card) -> None:
    card.driver.start(MERGING)
    card.offer(4096)
    card.kick(RX)
    card.arrive(header(gso=1) + frame(3000), HEADER + frame(60))
    assert card.used(RX) == [72]


@pytest.mark.parametrize(("features", "flags"), [(PLAIN, 0), (PLAIN | NetFeature.GUEST_CSUM, 2)])
def test_checksum_flags_only_for_those_who_asked(card: Card, features: int, flags: int) -> None:
    card.driver.start(features)
    buffer = card.offer(200)
    card.kick(RX)
    card.arrive(header(flags=2) + frame())
    assert card.arena.content(buffer)[0] == flags


@pytest.mark.parametrize("size", [1, 12, 25])
def test_what_is_no_frame_does_not_reach_the_guest(card: Card, size: int) -> None:
    card.driver.start()
    card.offer(1526)
    card.kick(RX)
    card.arrive(bytes(size), HEADER + frame())
    assert card.used(RX) == [72]


@pytest.mark.parametrize("features", [PLAIN, MERGING])
def test_buffers_that_are_none_come_back_empty(card: Card, features: int) -> None:
    card.driver.start(features)
    card.offer(11)
    card.driver.queues[RX].add([card.arena.readable(bytes(1526))])
    card.offer(1526)
    card.kick(RX)
    card.arrive(HEADER + frame())
    assert card.used(RX) == [0, 0, 72]
    assert card.faults == []


def test_frames_for_others_do_not_reach_the_guest(card: Card) -> None:
    card.driver.start()
    card.offer(1526)
    card.kick(RX)
    card.arrive(HEADER + frame(to=b"\x52\x54\0\0\0\7"), HEADER + frame(61))
    assert card.used(RX) == [73]
    assert card.counts()["net0.rx_filtered"] == 1


@pytest.mark.parametrize("features", [None, MERGING])
def test_no_kicks_are_wanted_while_there_are_buffers(card: Card, features: int | None) -> None:
    card.driver.start(features)
    card.settle()
    queue = card.driver.queues[RX]
    card.offer(1526)
    queue.kick_wanted()
    card.kick(RX)
    for _ in range(10):
        card.offer(1526)
        assert not queue.kick_wanted()
        card.arrive(HEADER + frame())
    assert len(card.used(RX)) == 10


def test_many_frames_at_once(card: Card) -> None:
    card.driver.start()
    for _ in range(200):
        card.offer(100)
    sent = 0
    while sent < 200:
        try:
            card.tap.outside.send(HEADER + frame())
        except BlockingIOError:
            break
        sent += 1
    card.kick(RX)
    assert len(card.used(RX)) == sent


def test_a_reset_in_the_middle_of_a_frame(card: Card) -> None:
    card.driver.start()
    card.offer(100)
    card.kick(RX)
    card.arrive(header(gso=1) + frame(1000))
    card.driver.start()
    card.offer(1526)
    card.kick(RX)
    card.arrive(HEADER + frame())
    assert card.used(RX) == [72]


def test_a_hostile_ring(card: Card) -> None:
    queue = card.driver.start()[RX]
    card.offer(1526)
    queue.offer(999)
    card.kick(RX)
    card.arrive(HEADER + frame(), HEADER + frame())
    assert card.used(RX) == [72], "what came before counts"
    assert card.driver.status & Status.DEVICE_NEEDS_RESET
    assert card.faults == ["net0: descriptor 999 of a table of 256; the device waits for a reset"]
    card.driver.arena = card.arena = Arena(card.memory, 0x10_0000, card.memory_bytes)
    card.driver.start()
    card.offer(1526)
    card.kick(RX)
    card.arrive(HEADER + frame())
    assert card.used(RX)[0] == 72


def test_the_limit_holds_after_a_burst(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, limits=NetLimits(rx_pps=Rate(per_second=20, burst=5)))
    card.driver.start()
    for _ in range(8):
        card.offer(1526)
    card.kick(RX)
    begin = time.monotonic()
    card.arrive(*[HEADER + frame()] * 8)
    received = len(card.used(RX))
    assert received == 5
    card.send(HEADER + frame())
    assert card.used(TX) == [0], "the other direction goes on"
    while received < 8:
        card.loop.wait(0.01)
        received += len(card.used(RX))
    assert 3 / 20 * 0.8 <= time.monotonic() - begin < 3


# The reference engine's own: when the tap is watched.


def test_a_waiting_frame_does_not_make_the_loop_spin(python_card: Card) -> None:
    card = python_card
    card.arrive(HEADER + frame())
    assert not card.loop.watches(card.tap.fileno()), "nobody is there yet"
    card.driver.start()
    card.settle()  # raises if it spins
    assert not card.loop.watches(card.tap.fileno()), "the driver has no buffers yet"
    card.offer(1526)
    assert card.driver.queues[RX].kick_wanted()
    card.kick(RX)
    assert card.used(RX) == [72]
    card.driver.reset()
    assert not card.loop.watches(card.tap.fileno())
    card.arrive(HEADER + frame())


def test_a_long_queue_gives_others_a_turn(python_card: Card) -> None:
    card = python_card
    card.driver.start()
    for _ in range(100):
        card.offer(100)
    for _ in range(100):
        card.tap.outside.send(HEADER + frame())
    card.loop.turn()
    assert len(card.used(RX)) == 64


def test_a_reset_while_the_loop_waits_for_the_lock(python_card: Card) -> None:
    card = python_card
    card.driver.start()
    card.offer(1526)
    card.tap.outside.send(HEADER + frame())
    callback = card.loop._watched[card.tap.fileno()][0]
    card.driver.reset()
    with card.transport.lock:
        callback()
    assert card.faults == []


def test_a_tap_that_is_deleted(python_card: Card) -> None:
    card = python_card
    card.driver.start()
    card.offer(1526)
    card.tap.gone = True
    card.arrive(HEADER + frame())
    assert len(card.faults) == 1
    assert card.faults[0].startswith("net0: tap tap0: ")
    assert not card.loop.watches(card.tap.fileno())
    assert not card.driver.status & Status.DEVICE_NEEDS_RESET
    card.send(HEADER + frame())
    assert card.used(TX) == [0]
    card.tap.gone = False
    card.kick(RX)
    assert card.used(RX) == [72], "the buffer was not lost"


def test_resets_while_frames_pour_in(make_card: MakeCard, engine: str) -> None:
    """A vCPU thread resets and starts the device again and again while the other threads receive."""
    card = make_card(engine)
    loop = SteppedLoop()
    card.card._loop = card.path._loop = loop  # type: ignore[attr-defined]
    pouring = True

    def pour() -> None:
        while pouring:
            try:
                card.tap.outside.send(header(gso=1) + frame(300))
            except BlockingIOError:
                time.sleep(0)

    threads = [threading.Thread(target=loop.run), threading.Thread(target=pour)]
    for thread in threads:
        thread.start()
    received = 0
    try:
        for turn in range(300):
            card.driver.arena = card.arena = Arena(card.memory, 0x1_0000 if turn % 2 else 0x20_0000, card.memory_bytes)
            card.driver.start()
            for _ in range(16):
                card.offer(128)
            card.driver.kick(RX)
            if turn % 3 == 0:
                time.sleep(0.001)
            received += len(card.used(RX))
    finally:
        pouring = False
        card.driver.reset()
        loop.stop()
        for thread in threads:
            thread.join()
        loop.close()
    assert received > 0
    assert card.faults == []
