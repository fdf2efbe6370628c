"""Cards on sockets to other processes: packets (a lan) and streams (passt), by both engines."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.card import MAC, RX, TX, Card, frame, header
from tests.fakes.native import both_engines
from vmm.errors import BackendError
from vmm.host import uplink as uplink_module
from vmm.host.uplink import StreamUplink, Uplink
from vmm.virtio.net_frame import GUEST_OFFLOADS, NetFeature

pytestmark = both_engines
HEADER = header()
both_kinds = pytest.mark.parametrize("kind", [Uplink, StreamUplink])


class Far:
    """The other side of a card's socket, as the last `connect` made it."""

    def __init__(self, kind: type[Uplink]) -> None:
        self._kind = kind
        self.ends: list[socket.socket] = []

    def connect(self) -> socket.socket:
        if len(self.ends) == 3:
            raise BackendError("nobody is there", where="test")
        stream = self._kind is StreamUplink
        ours, theirs = socket.socketpair(type=socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET)
        theirs.settimeout(5)
        self.ends.append(theirs)
        return ours

    def send(self, sent: bytes) -> None:
        """Send a frame without header."""
        self.ends[-1].sendall(self._wrapped(sent))

    def receive(self) -> bytes:
        """The next frame, without header."""
        end = self.ends[-1]
        if self._kind is not StreamUplink:
            return end.recv(1 << 17)[12:]
        return end.recv(int.from_bytes(end.recv(4, socket.MSG_WAITALL), "big"), socket.MSG_WAITALL)

    def _wrapped(self, sent: bytes) -> bytes:
        return (len(sent).to_bytes(4, "big") if self._kind is StreamUplink else HEADER) + sent


@pytest.fixture
def far(kind: type[Uplink], monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setattr(uplink_module, "_LIFE_MIN_S", 0)
    made = Far(kind)
    yield made
    for end in made.ends:
        end.close()


@pytest.fixture
def card(engine: str, kind: type[Uplink], far: Far) -> Iterator[Card]:
    made = Card(engine, tap=kind("test", 9000, far.connect))
    yield made
    made.close()


def await_it(card: Card, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        card.loop.wait(0.005)


@both_kinds
def test_the_card_offers_no_offloads(card: Card) -> None:
    everything = GUEST_OFFLOADS | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_USO
    assert not card.device.features & everything
    assert card.device.features & NetFeature.MRG_RXBUF


@both_kinds
@pytest.mark.parametrize("size", [14, 60, 2036, 2037, 9014])
def test_frames_go_both_ways(card: Card, far: Far, size: int) -> None:
    card.driver.start()
    sent, received = frame(size), frame(size)
    card.send(HEADER[:5], HEADER[5:] + sent[:8], sent[8:])
    assert far.receive() == sent
    assert card.used(TX) == [0]
    piece = card.offer(12000)
    card.kick(RX)
    far.send(received)
    card.settle()
    assert card.used(RX) == [12 + size]
    assert card.arena.content(piece)[: 12 + size] == header(buffers=1) + received


@both_kinds
def test_large_frames_one_after_the_other(card: Card, far: Far) -> None:
    card.driver.start()
    frames = [frame(9000) for _ in range(4)]
    pieces = [card.offer(12000) for _ in frames]
    card.kick(RX)
    for each in frames:
        far.send(each)
    card.settle()
    assert [card.arena.content(piece)[12:9012] for piece in pieces] == frames


@both_kinds
def test_frames_wait_where_there_is_no_room(card: Card, far: Far) -> None:
    card.driver.start()
    queue = card.driver.queues[TX]
    sent = 0
    while True:
        for _ in range(50):
            queue.add([card.arena.readable(HEADER + sent.to_bytes(2, "big") + frame(1498))])
            sent += 1
        card.kick(TX)
        if len(card.used(TX)) < 50:
            break
    for number in range(sent):
        assert far.receive()[:2] == number.to_bytes(2, "big")
        card.loop.wait(0)
        if number % 10 == 0:
            card.loop.wait(0.004)
    assert card.counts().get("net0.tx_dropped", 0) == 0


@both_kinds
def test_a_lost_uplink_is_mended(card: Card, far: Far) -> None:
    card.driver.start()
    card.offer(2048)
    card.offer(2048)
    card.kick(RX)
    far.ends[-1].close()
    await_it(card, lambda: len(far.ends) == 2)
    card.settle()
    assert card.faults == ["net0: test: the other side is lost (Broken pipe); connected again"]
    far.send(frame())
    await_it(card, lambda: card.used(RX) == [72])
    card.send(HEADER + frame(60, to=MAC))
    assert far.receive()[:6] == MAC


@both_kinds
def test_what_cannot_be_mended_is_said_and_the_guest_lives_on(card: Card, far: Far) -> None:
    card.driver.start()
    card.offer(2048)
    card.kick(RX)
    for count in (2, 3):
        far.ends[-1].close()
        await_it(card, lambda count=count: len(far.ends) == count)  # type: ignore[misc]
        card.settle()
    far.ends[-1].close()
    await_it(card, lambda: card.faults and "nobody is there" in card.faults[-1])
    card.send(HEADER + frame())
    assert card.used(TX) == [0]
    assert card.driver.status == 15


@pytest.mark.parametrize("kind", [StreamUplink])
def test_a_stream_in_pieces(card: Card, far: Far) -> None:
    card.driver.start()
    card.offer(2048)
    card.kick(RX)
    whole = frame()
    for at in range(4 + len(whole)):
        assert card.used(RX) == []
        far.ends[-1].sendall((len(whole).to_bytes(4, "big") + whole)[at : at + 1])
        card.settle()
    assert card.used(RX) == [72]


@pytest.mark.parametrize("kind", [StreamUplink])
@pytest.mark.parametrize("length", [0, 13, 65554, 1 << 31])
def test_nonsense_on_a_stream_is_its_end(card: Card, far: Far, length: int) -> None:
    card.driver.start()
    card.offer(2048)
    card.kick(RX)
    far.ends[-1].sendall(length.to_bytes(4, "big") + bytes(50))
    await_it(card, lambda: len(far.ends) == 2)
    card.settle()
    assert card.faults == [f"net0: test: the other side is lost ({os.strerror(errno.EPROTO)}); connected again"]
