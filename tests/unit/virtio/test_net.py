"""The network device: what it offers, its configuration space, and its life from activation to reset."""

from __future__ import annotations

import contextlib
import gc
import os
import time

import pytest

from tests.fakes.card import MAC, MTU, RX, TX, Card, frame, header
from tests.fakes.native import missing
from tests.unit.virtio.conftest import MakeCard
from vmm.virtio.net_frame import GUEST_OFFLOADS, NetFeature
from vmm.virtio.spec import Feature, Status

HEADER = header()
PLAIN = Feature.VERSION_1 | NetFeature.MAC
USO = NetFeature.HOST_USO | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6


def test_config_space(make_card: MakeCard) -> None:
    card = make_card("python", pairs=3)
    assert card.driver.read(0x08) == 1
    assert card.driver.read(0x100, 8).to_bytes(8, "little") == MAC + b"\1\0"
    assert [card.driver.read(0x100 + at, 1) for at in range(6)] == list(MAC)
    assert card.driver.read(0x106, 2) == 1, "link up"
    assert card.driver.read(0x108, 2) == 3, "queue pairs"
    assert card.driver.read(0x10A, 2) == MTU


def offered(card: Card) -> int:
    return card.driver.offered() & ~(Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC)


def test_offered_features(make_card: MakeCard) -> None:
    every = sum(getattr(NetFeature, name) for name in vars(NetFeature) if name.isupper())
    assert offered(make_card("python", pairs=2)) == every
    assert offered(make_card("python")) == every & ~NetFeature.MQ, "one pair only"


def test_udp_is_segmented_only_where_the_tap_can(python_card: Card) -> None:
    python_card.tap.segments_udp = False
    card = type(python_card.card)("net0", python_card.tap, python_card.loop, python_card.path, mac=MAC, mtu=MTU)
    assert not card.features & USO


@pytest.mark.parametrize(
    ("features", "flags"),
    [
        (0, 0),
        (NetFeature.GUEST_CSUM, 1),
        (NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4, 3),
        (NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6, 7),
        (GUEST_OFFLOADS, 0x6F),
        (NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_USO, 0),
    ],
)
def test_offloads_follow_the_driver(python_card: Card, features: int, flags: int) -> None:
    python_card.driver.start(PLAIN | features)
    assert python_card.tap.offloads == [flags]


def test_a_driver_that_starts_uses_one_pair(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, pairs=3)
    card.driver.start()
    assert card.tap.enabled == [1]


def test_a_tap_that_refuses_is_told_to_the_user(card: Card) -> None:
    card.tap.gone = True
    card.driver.start()
    assert card.faults == ["net0: tap tap0: cannot use queues: File descriptor in bad state"]
    assert not card.driver.status & Status.DEVICE_NEEDS_RESET


def test_it_works_again_after_a_reset(card: Card) -> None:
    for _ in range(3):
        card.driver.start()
        card.offer(1526)
        card.kick(RX)
        card.arrive(HEADER + frame())
        card.send(HEADER + frame())
        assert (card.used(RX), card.used(TX), len(card.tap.received())) == ([72], [0], 1)
        card.driver.reset()
        card.arrive(HEADER + frame())
        card.tap.inside.recv(100)  # nobody took it


def test_kicks_that_come_as_eventfds(card: Card) -> None:
    card.driver.start()
    card.driver.queues[TX].add([card.arena.readable(HEADER + frame())])
    os.eventfd_write(card.transport.kick_fds[TX], 1)
    if not card.device.own_workers:
        card.run_kicks()
    card.settle()
    assert len(card.tap.received()) == 1


def test_queues_that_the_driver_did_not_set_up(card: Card) -> None:
    card.driver.negotiate()
    card.driver.status |= Status.DRIVER_OK
    card.arrive(HEADER + frame())
    for index in range(3):
        card.kick(index)
    assert card.faults == []


@pytest.mark.parametrize("index", [RX, TX])
def test_a_queue_taken_back(card: Card, index: int) -> None:
    card.driver.start()
    card.driver.write(0x30, index)
    card.driver.write(0x44, 0)
    for _ in range(3):
        card.offer(1526)
        card.kick(RX)
        card.arrive(HEADER + frame())
        card.send(HEADER + frame())
    assert card.used(index) == []
    assert len(card.used(1 - index)) == 3, "the other queue lives on"
    assert card.faults == []


@pytest.mark.skipif(bool(missing), reason=missing)
def test_nothing_is_left_of_the_workers_after_a_reset(make_card: MakeCard) -> None:
    card = make_card("native", pairs=2)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    card.driver.start()
    assert card.command(b"\4\0\2\0") == b"\0"
    assert workers() == 2
    card.driver.reset()
    assert len(os.listdir("/proc/self/fd")) == before
    deadline = time.monotonic() + 1
    while workers():  # a thread that was joined is seen for a moment yet
        assert time.monotonic() < deadline
        time.sleep(0.001)


def workers() -> int:
    """How many net workers this process has."""
    found = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm", encoding="ascii") as file:
            found += file.read() == "net\n"
    return found
