"""Transmitting, by both engines."""

from __future__ import annotations

import time

import pytest

from tests.fakes.card import TX, Card, frame, header
from tests.unit.virtio.conftest import MakeCard
from vmm.config import NetLimits, Rate
from vmm.virtio.net_frame import FRAME_MAX
from vmm.virtio.spec import Status

HEADER = header()


@pytest.mark.parametrize("cut", [[72], [12, 60], [1, 11, 20, 40], [10, 62]])
def test_frames_go_out_as_they_are(card: Card, cut: list[int]) -> None:
    card.driver.start()
    whole = header(flags=1, gso=1) + frame(60)
    card.send(*[whole[sum(cut[:n]) : sum(cut[: n + 1])] for n in range(len(cut))])
    assert card.tap.received() == [whole]
    assert card.used(TX) == [0]
    counts = card.counts()
    assert (counts["net0.tx"], counts["net0.bytes_sent"]) == (1, 60)


@pytest.mark.parametrize("size", [2048, 2049, 9000, 65_000])
def test_large_frames_go_out_as_they_are(card: Card, size: int) -> None:
    card.driver.start()
    whole = header(gso=1) + frame(size - 12)
    card.send(*[whole[at : at + 700] for at in range(0, size, 700)])
    assert card.tap.received() == [whole]


def test_a_card_that_never_stood_is_not_set_going_twice(card: Card) -> None:
    """As after a standstill that has failed. Another worker would outlive the card: `nothing_leaks` sees it."""
    card.driver.start()
    with card.transport.lock:
        card.transport.core.go_on()
    whole = header() + frame(60)
    card.send(whole)
    assert card.tap.received() == [whole]


def test_a_sent_frame_is_traced(python_card: Card) -> None:
    python_card.driver.start()
    python_card.send(HEADER + frame())
    assert python_card.traced[-1] == "net0 tx 60 bytes -> sent"


@pytest.mark.parametrize("size", [1, 11, 12, 25, FRAME_MAX + 1])
def test_what_is_no_frame_is_dropped(card: Card, size: int) -> None:
    card.driver.start()
    card.send(bytes(size))
    assert card.tap.received() == []
    assert card.used(TX) == [0]
    card.send(HEADER + frame())
    assert len(card.tap.received()) == 1
    assert card.faults == []
    assert card.counts()["net0.tx_dropped"] == 1


def test_a_buffer_that_is_only_writable_is_dropped(card: Card) -> None:
    card.driver.start()
    card.driver.queues[TX].add([card.arena.writable(100)])
    card.kick(TX)
    assert card.used(TX) == [0]


def test_a_full_tap_drops(card: Card) -> None:
    card.driver.start()
    while card.tap.writev([memoryview(HEADER + frame())]):
        pass
    for _ in range(200):
        card.driver.queues[TX].add([card.arena.readable(HEADER + frame())])
    card.kick(TX)
    assert card.used(TX) == [0] * 200
    assert card.counts()["net0.tx_dropped"] == 200


def test_a_batch_is_one_interrupt(card: Card) -> None:
    card.driver.start()
    for _ in range(50):
        card.driver.queues[TX].add([card.arena.readable(HEADER + frame())])
    card.kick(TX)
    assert card.used(TX) == [0] * 50
    assert card.irq.pulses == 1


def test_a_hostile_ring(card: Card) -> None:
    queue = card.driver.start()[TX]
    queue.add([card.arena.readable(HEADER + frame())])
    queue.offer(999)
    card.kick(TX)
    assert card.used(TX) == [0], "what came before counts"
    assert card.driver.status & Status.DEVICE_NEEDS_RESET
    assert card.faults == ["net0: descriptor 999 of a table of 256; the device waits for a reset"]


# Limits.


@pytest.mark.parametrize(
    "limits",
    [
        NetLimits(tx_pps=Rate(per_second=20, burst=5)),
        NetLimits(tx_bw=Rate(per_second=20 * 60, burst=5 * 60 - 59)),
    ],
)
def test_the_limit_holds_after_a_burst(make_card: MakeCard, engine: str, limits: NetLimits) -> None:
    card = make_card(engine, limits=limits)
    card.driver.start()
    begin = time.monotonic()
    for _ in range(8):
        card.driver.queues[TX].add([card.arena.readable(HEADER + frame())])
    card.kick(TX)
    assert len(card.used(TX)) == 5
    sent = 5
    while sent < 8:
        card.loop.wait(0.01)
        sent += len(card.used(TX))
    assert 3 / 20 * 0.8 <= time.monotonic() - begin < 3
    assert len(card.tap.received()) == 8


def test_limits_change_while_frames_wait(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, limits=NetLimits(tx_pps=Rate(per_second=1, burst=1)))
    card.driver.start()
    for _ in range(100):
        card.driver.queues[TX].add([card.arena.readable(HEADER + frame())])
    card.kick(TX)
    assert len(card.used(TX)) == 1
    card.path.set_limits(NetLimits())
    deadline = time.monotonic() + 2
    sent = 1
    while sent < 100:
        assert time.monotonic() < deadline
        card.loop.wait(0.01)
        sent += len(card.used(TX))
