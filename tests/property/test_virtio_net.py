"""Properties of the network device: both engines do the same, whatever the driver and the network do."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.fakes.card import MAC, RX, TX, Card
from tests.fakes.driver import Buffer
from tests.fakes.native import missing
from vmm.virtio.net_frame import FRAME_MAX, NetFeature
from vmm.virtio.spec import DescFlag, Feature, Status

SIZE = 8
OTHER, GROUP, ALL = b"\x52\x54\0\0\0\7", b"\x33\x33\0\0\0\1", b"\xff" * 6
RING = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
native = pytest.mark.skipif(bool(missing), reason=missing)

pieces = st.lists(
    st.one_of(st.integers(1, 40), st.sampled_from([12, 1514, 1526, 2048, 4096, 16_384])), min_size=1, max_size=4
)
frames = st.tuples(
    st.one_of(st.integers(1, 350), st.sampled_from([1530, 1531, 2048, 2049, 9000, 65_000, FRAME_MAX])),
    st.sampled_from([0, 0, 0, 1, 3, 4, 5, 0x81]),
    st.integers(0, 3),
    st.sampled_from([MAC, MAC, MAC, OTHER, GROUP, ALL]),
)
commands = st.one_of(
    st.tuples(st.integers(0, 5), st.integers(0, 1)).map(lambda mode: bytes([0, *mode])),
    st.sampled_from([b"\1\1" + OTHER, b"\1\0\1\0\0\0" + OTHER + b"\1\0\0\0" + GROUP, b"\5\0" + bytes(8)]),
    st.binary(max_size=30),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), pieces, st.booleans(), st.integers(0, 2)),
        st.tuples(st.just("fill"), st.sampled_from([20, 26, 40, 1000])),
        st.tuples(st.just("send"), pieces, st.booleans(), frames),
        st.tuples(st.just("arrive"), frames),
        st.tuples(st.just("command"), commands),
    ),
    max_size=25,
)
features = st.sampled_from(
    [
        RING | NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA | NetFeature.CTRL_MAC_ADDR | more
        for more in (
            0,
            NetFeature.MRG_RXBUF | NetFeature.MTU,
            NetFeature.MRG_RXBUF | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.CTRL_GUEST_OFFLOADS,
        )
    ]
)


def contents(size: int, gso: int, flags: int, to: bytes) -> bytes:
    """A frame with its header, of *size* bytes in all."""
    fixed = struct.pack("<BBHHHHH", flags, gso, 1, 2, 3, 4, 0xFFFF) + to
    return (fixed + bytes(at * 7 & 0xFF for at in range(max(0, size - len(fixed)))))[:size]


class Run:
    """One engine's run of a script, and what can be seen of it."""

    def __init__(self, engine: str, negotiated: int) -> None:
        self.card = Card(engine)
        self.card.driver.start(negotiated, size=SIZE)
        self.offered: dict[int, list[Buffer]] = {}
        self.seen: list[Any] = []

    def step(self, step: tuple[Any, ...]) -> None:
        """Do one step and note what comes of it."""
        card = self.card
        kind, *arguments = step
        if kind == "offer":
            self._offer(*arguments)
            card.arrive(contents(100, 0, 0, MAC))
        elif kind == "fill":
            while self.card.driver.queues[RX]._free:
                self._offer([arguments[0]], False, 0)
        elif kind == "send":
            self._send(*arguments)
        elif kind == "arrive":
            with contextlib.suppress(BlockingIOError):
                card.arrive(contents(*arguments[0]))
        elif card.driver.queues[2]._free:
            self.seen.append(card.command(arguments[0]) if arguments[0] else None)
        self.look()

    def _offer(self, sizes: list[int], indirect: bool, readable: int) -> None:
        queue = self.card.driver.queues[RX]
        if len(queue._free) < (1 if indirect else len(sizes)):
            return
        buffers = [self.card.arena.writable(size) for size in sizes]
        if readable:  # nobody asked for those
            buffers[0] = self.card.arena.readable(bytes(buffers[0].size))
        self.offered[queue.add(buffers, indirect=indirect)] = buffers
        self.card.kick(RX)

    def _send(self, cut: list[int], indirect: bool, what: tuple[int, int, int, bytes]) -> None:
        queue = self.card.driver.queues[TX]
        if len(queue._free) < (1 if indirect else len(cut) + 1):
            return
        whole, buffers = contents(*what), []
        for size in cut:
            if whole:
                buffers.append(self.card.arena.readable(whole[:size]))
                whole = whole[size:]
        if whole:
            buffers.append(self.card.arena.readable(whole))
        queue.add(buffers, indirect=indirect)
        self.card.kick(TX)

    def look(self) -> None:
        """Note everything that the driver, the network and the user can see."""
        card = self.card
        for head, written in card.driver.queues[RX].collect():
            written_to = b"".join(card.arena.content(b) for b in self.offered.get(head, []) if b.writable)
            self.seen.append((head, written, written_to[:written]))
        self.seen += [card.driver.queues[TX].collect(), card.tap.received(), list(card.faults), card.driver.status]
        self.seen.append(card.driver.read(0x100, 8))

    def end(self) -> None:
        """Note the counters too, and take it apart."""
        self.seen.append(sorted(self.card.counts().items()))
        self.card.close()


@contextlib.contextmanager
def both(negotiated: int) -> Iterator[list[Run]]:
    runs = [Run("python", negotiated), Run("native", negotiated)]
    try:
        yield runs
    finally:
        for run in runs:
            run.end()
    assert runs[0].seen == runs[1].seen


@native
@relaxed
@given(negotiated=features, script=steps)
def test_both_engines_do_the_same(negotiated: int, script: list[tuple[Any, ...]]) -> None:
    """VIRTIO 1.2 §5.1.6.4.1: "The device MUST use only the buffers that the driver made available", the reference is
    `vmm/virtio/net_rx.py` and `net_tx.py`.
    """
    with both(negotiated) as runs:
        for step in script:
            for run in runs:
                run.step(step)


addresses = st.sampled_from(
    [0, 0x2_0000, (4 << 20) - 100, 4 << 20, 0xC000_0000, 1 << 32, (1 << 64) - 1, (1 << 64) - 16]
)
lengths = st.sampled_from([0, 1, 11, 12, 26, 100, 1526, 0x1_0000, 1 << 31, 0xFFFF_FFFF])
descriptor = st.tuples(
    addresses, lengths, st.sampled_from([0, 1, 2, 3, 4, 5, 6, 0xFFFF]), st.sampled_from([0, 1, 7, 8])
)


@native
@relaxed
@given(
    negotiated=features,
    before=steps,
    index=st.sampled_from([RX, TX]),
    table=st.lists(descriptor, min_size=SIZE, max_size=SIZE),
    inner=st.lists(descriptor, max_size=SIZE),
    heads=st.lists(st.sampled_from([0, 1, 7, 8, 0xFFFF]), min_size=1, max_size=3),
    jump=st.sampled_from([0, 0, 0, 1, 8, 9, 0x7FFF, 0xFFFF]),
)
def test_both_engines_stop_at_the_same_fault(  # noqa: PLR0917
    negotiated: int,
    before: list[tuple[Any, ...]],
    index: int,
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    heads: list[int],
    jump: int,
) -> None:
    """VIRTIO 1.2 §2.1.2: "The device SHOULD set DEVICE_NEEDS_RESET when it enters an error state that a reset is
    needed."
    """
    with both(negotiated) as runs:
        for step in before:
            for run in runs:
                run.step(step)
        for run in runs:
            for _ in range(SIZE + 1):  # use up the buffers, or the engines differ in how much of the ring they know
                run.step(("arrive", (100, 0, 0, MAC)))
            queue = run.card.driver.queues[index]
            assume(not queue._chains)
            packed = b"".join(struct.pack("<QIHH", *entry) for entry in inner)
            indirect = run.card.arena.reserve(16 * SIZE)
            run.card.memory.write(indirect, packed)
            for number, (gpa, size, flags, following) in enumerate(table):
                if flags & DescFlag.INDIRECT and inner:
                    gpa, size = indirect, len(packed)
                queue.set_descriptor(number, gpa, size, flags, following)
            for head in heads:
                queue.offer(head)
            queue.set_avail_idx(queue.avail_idx + jump)
            run.card.kick(index)
            for _ in range(4):
                with contextlib.suppress(BlockingIOError):
                    run.card.arrive(contents(100, 0, 0, MAC))
            run.offered.clear()
            run.look()
            if run.card.driver.status & Status.DEVICE_NEEDS_RESET:
                assert len(run.card.faults) == 1
