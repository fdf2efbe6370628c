"""Network cards on real taps, by both engines."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.fakes.card import Card, header
from tests.fakes.native import both_engines
from vmm.host.tap import open_tap

from .frames import BROADCAST, ETHERTYPE_TEST, GUEST_MAC, arp_request
from .namespace import await_carrier, ip

pytestmark = pytest.mark.net

HEADER = header()


@pytest.fixture
def wire(netns: None) -> Iterator[socket.socket]:
    """The host's side of a tap with room for several queues: what is sent here the guest receives."""
    ip("tuntap add dev tap0 mode tap multi_queue")
    ip("link set tap0 addrgenmode none")
    ip("address add 10.0.0.1/24 dev tap0")
    ip("link set tap0 up")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as channel:
        channel.bind(("tap0", 0x88B5))
        channel.settimeout(5)
        yield channel


def await_used(card: Card, *indexes: int) -> list[int]:
    """What comes back on one of the queues *indexes*, within a few seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        card.loop.wait(0.005)
        for index in indexes:
            used = card.used(index)
            if used:
                return used
    raise TimeoutError(f"nothing on queues {indexes}")


@both_engines
def test_frames_go_both_ways_on_every_queue(wire: socket.socket, engine: str) -> None:
    card = Card(engine, tap=open_tap("tap0", queues=2))
    try:
        await_carrier("tap0")
        card.driver.start()
        assert card.command(b"\4\0\2\0") == b"\0"
        for pair in (0, 1):
            sent = BROADCAST + GUEST_MAC + ETHERTYPE_TEST + bytes([pair]) * 60
            card.send(HEADER, sent, index=2 * pair + 1)
            assert wire.recv(2048) == sent
        for index in (0, 2):
            card.offer(2048, index=index)
            card.kick(index)
        wire.send(BROADCAST + GUEST_MAC + ETHERTYPE_TEST + bytes(60))
        received = await_used(card, 0, 2)
        assert received == [12 + 14 + 60], "on whichever queue the host chooses"
    finally:
        card.close()


@both_engines
def test_a_tap_that_is_deleted(wire: socket.socket, engine: str) -> None:
    card = Card(engine, tap=open_tap("tap0"))
    try:
        card.driver.start()
        card.offer(2048)
        card.kick(0)
        ip("link del tap0")
        card.loop.wait(0.1)
        assert card.faults == ["net0: tap tap0: cannot read: File descriptor in bad state\n  was the device deleted?"]
        card.send(HEADER, arp_request(b"\x0a\0\0\1"))
        assert card.used(1) == [0]
        assert card.driver.status == 15, "the guest lives on"
    finally:
        card.close()
