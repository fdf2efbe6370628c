"""Two cards on one lan, by both engines; the switch is a process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")

from tests.fakes.card import MAC, RX, TX, Card, header
from tests.fakes.lan import BROADCAST, frame, mac
from tests.fakes.native import both_engines
from vmm.config import VLAN_TRUNK
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
