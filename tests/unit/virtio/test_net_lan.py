"""Two cards on one lan, by both engines; the switch is a process."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")

from tests.fakes.card import MAC, RX, TX, Card, header
from tests.fakes.lan import BROADCAST, frame, mac
from tests.fakes.native import both_engines
from vmm.config import VLAN_TRUNK, NetLimits, Rate
from vmm.host.lan.port import open_lan

pytestmark = both_engines


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def cards(engine: str) -> Iterator[list[Card]]:
    """Two in VLAN 5, and a trunk."""
    made: list[Card] = []
    try:
        for vlan in (5, 5, VLAN_TRUNK):
            made.append(Card(engine, tap=open_lan("x", vlan=vlan)))
            made[-1].driver.start()
        yield made
    finally:
        for card in made:
            card.close()


def received(card: Card, size: int = 2048) -> bytes:
    """The next frame that comes in."""
    piece = card.offer(size)
    card.kick(RX)
    deadline = time.monotonic() + 5
    while not (used := card.used(RX)):
        assert time.monotonic() < deadline, "no frame"
        card.loop.wait(0.005)
    return card.arena.content(piece)[: used[0]]


def test_frames_go_from_card_to_card(cards: list[Card]) -> None:
    first, second, trunk = cards
    first.send(header(), frame(BROADCAST, MAC))
    assert first.used(TX) == [0]
    assert received(second) == header(buffers=1) + frame(BROADCAST, MAC)
    assert received(trunk) == header(buffers=1) + frame(BROADCAST, MAC, tagged=b"\x81\0\0\5")
    second.send(header(), frame(MAC, mac(2)))
    assert received(first) == header(buffers=1) + frame(MAC, mac(2))


def test_headers_of_a_hostile_guest_are_wiped(cards: list[Card]) -> None:
    cards[0].send(b"\xff" * 12, frame(BROADCAST, mac(1)))
    assert received(cards[1]) == header(buffers=1) + frame(BROADCAST, mac(1))


def test_ipv6_neighbours_find_each_other(cards: list[Card]) -> None:
    first, second, _ = cards
    assert second.command(b"\0\1", b"\1") == b"\0"  # it wants all multicasts (VIRTIO 1.2 §5.1.6.5.1)
    ask = bytes.fromhex("3333ff000002") + MAC + b"\x86\xdd" + ipv6("fe80::1", "ff02::1:ff00:2", 135)
    first.send(header(), ask)
    assert received(second) == header(buffers=1) + ask
    answer = MAC + mac(2) + b"\x86\xdd" + ipv6("fe80::2", "fe80::1", 136)
    second.send(header(), answer)
    assert received(first) == header(buffers=1) + answer


def ipv6(source: str, target: str, kind: int) -> bytes:
    """A neighbour solicitation (135) or advertisement (136) without options (RFC 8200, RFC 4861 §4.3)."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, address) for address in (source, target))
    return b"\x60\0\0\0\0\x18\x3a\xff" + ends + bytes([kind]) + bytes(23)


def test_a_cards_limit_holds_on_a_lan(cards: list[Card]) -> None:
    first, second, _ = cards
    first.path.set_limits(NetLimits(tx_pps=Rate(per_second=20, burst=2)))
    for _ in range(4):
        first.driver.queues[TX].add([first.arena.readable(header() + frame(BROADCAST, MAC))])
    begin = time.monotonic()
    first.kick(TX)
    sent = len(first.used(TX))
    assert sent == 2
    while sent < 4:
        first.loop.wait(0.005)
        sent += len(first.used(TX))
    assert 2 / 20 * 0.8 <= time.monotonic() - begin < 3
    for _ in range(4):
        assert received(second) == header(buffers=1) + frame(BROADCAST, MAC)
