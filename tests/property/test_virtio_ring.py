"""Properties of split rings and descriptor chains: honest drivers get everything, hostile ones get nowhere."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.driver import DESC, MIB, Arena, Buffer, DriverQueue
from tests.fakes.native import NativeQueue, both_engines, missing
from vmm.errors import GuestFault
from vmm.memory import GuestMemory
from vmm.virtio import chain
from vmm.virtio.queue import QueueConfig, VirtQueue
from vmm.virtio.spec import DescFlag, Feature

SIZE = 8


@contextlib.contextmanager
def guest_memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(MIB)
    try:
        yield memory
    finally:
        memory.close()


def ring(
    memory: GuestMemory, features: int, start: int = 0, engine: str = "python"
) -> tuple[DriverQueue, VirtQueue | NativeQueue]:
    """Both ends of a ring whose indices begin at *start*."""
    driver = DriverQueue(Arena(memory, 0x1000, MIB), SIZE, event_idx=bool(features & Feature.EVENT_IDX), start=start)
    config = QueueConfig(SIZE)
    config.desc, config.driver, config.device = driver.desc, driver.driver, driver.device
    queue = config.activate(memory, features)
    driver.set_avail_idx(start)
    queue.next_avail = queue.next_used = queue._avail_idx = queue._published = start
    memory.store_u16(driver.device + 2, start)
    return driver, NativeQueue(memory, queue) if engine == "native" else queue


addresses = st.one_of(
    st.integers(0, MIB + 0x1000),
    st.sampled_from([0, MIB - 1, MIB, 0xC000_0000, 1 << 32, (1 << 64) - 1, (1 << 64) - 16]),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(st.integers(0, 64), st.sampled_from([16, 32, 0xFFFF_FFFF, 1 << 31]), st.integers(0, (1 << 32) - 1))
flags = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(0, 0xFFFF))
descriptors = st.tuples(addresses, lengths, flags, st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)))


@given(
    table=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    inner=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    head=st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
    indirect_max=st.sampled_from([None, 4, SIZE]),
    aim=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE)), max_size=3),
)
def test_any_table_is_a_chain_or_a_fault(
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    head: int,
    indirect_max: int | None,
    aim: list[tuple[int, int]],
) -> None:
    """VIRTIO 1.2 §2.7.5.2: "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total; this implies that
    loops in the descriptor chain are forbidden!" §2.7.5.3.1: "The driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag
    within an indirect descriptor", "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags."
    §2.7.4.2: "The driver MUST place any device-writable descriptor
    elements after any device-readable descriptor elements."
    """
    for index, count in aim:  # some that do point to the inner table
        table[index] = (0x8000, 16 * count, DescFlag.INDIRECT, 0)
    with guest_memory() as memory:
        memory.write(0x1000, b"".join(DESC.pack(*descriptor) for descriptor in table))
        memory.write(0x8000, b"".join(DESC.pack(*descriptor) for descriptor in inner))
        try:
            parsed = chain.parse(memory, 0x1000, SIZE, head, indirect_max=indirect_max)
        except GuestFault:
            return
        expected = _walk(memory, 0x1000, head)
        assert [len(view) for view in parsed.readable] == [size for _, size, write in expected if not write]
        assert [len(view) for view in parsed.writable] == [size for _, size, write in expected if write]
        assert 0 < len(expected) <= 2 * SIZE
        assert all(memory.contains(gpa, size) and size for gpa, size, _ in expected)
        assert [write for _, _, write in expected] == sorted(write for _, _, write in expected)
        assert parsed.readable_bytes == sum(map(len, parsed.readable))
        assert parsed.writable_bytes == sum(map(len, parsed.writable))
        del parsed


def _walk(memory: GuestMemory, table: int, index: int) -> list[tuple[int, int, bool]]:
    """The chain as the standard has it, of tables that are known to be good."""
    found: list[tuple[int, int, bool]] = []
    while True:
        gpa, size, bits, following = DESC.unpack(memory.read(table + 16 * index, 16))
        if bits & DescFlag.INDIRECT:
            assert not bits & DescFlag.NEXT
            return found + _walk(memory, gpa, 0)
        found.append((gpa, size, bool(bits & DescFlag.WRITE)))
        if not bits & DescFlag.NEXT:
            return found
        index = following


buffers = st.tuples(
    st.lists(st.binary(min_size=1, max_size=20), max_size=3), st.lists(st.integers(1, 20), max_size=3)
).filter(lambda both: 0 < len(both[0]) + len(both[1]) <= SIZE)


@both_engines
@given(
    rounds=st.lists(st.lists(st.tuples(buffers, st.booleans()), max_size=3), max_size=12),
    event_idx=st.booleans(),
    start=st.sampled_from([0, 1, 0x7FFF, 0xFFFA, 0xFFFF]),
)
def test_an_honest_driver_gets_everything_back(
    rounds: list[list[tuple[tuple[list[bytes], list[int]], bool]]], event_idx: bool, start: int, engine: str
) -> None:
    """VIRTIO 1.2 §2.7.8.2: "The device MUST set len prior to updating the used idx. The device MUST write at least len
    bytes to descriptor, beginning at the first device-writable buffer." §2.7.6: avail.idx "starts at 0, and increases"
    (modulo 2^16).
    """
    features = Feature.INDIRECT_DESC | (Feature.EVENT_IDX if event_idx else 0)
    with guest_memory() as memory:
        driver, queue = ring(memory, features, start, engine)
        for batch in rounds:
            sent: dict[int, tuple[bytes, list[Buffer]]] = {}
            for (outs, ins), indirect in batch:
                targets = [driver.arena.writable(size) for size in ins]
                pieces = [driver.arena.readable(data) for data in outs] + targets
                if len(pieces) > len(driver._free) and not (indirect and driver._free):
                    continue
                sent[driver.add(pieces, indirect=indirect)] = (b"".join(outs), targets)
            order = []
            while (popped := queue.pop()) is not None:
                order.append(popped.head)
                assert b"".join(popped.readable) == sent[popped.head][0]
                queue.push(popped.head, chain.scatter(popped.writable, bytes([popped.head]) * popped.writable_bytes))
            del popped
            assert order == list(sent)
            queue.publish()
            assert driver.collect() == [(head, sum(b.size for b in sent[head][1])) for head in order]
            for head, (_, targets) in sent.items():
                for target in targets:
                    assert driver.arena.content(target) == bytes([head]) * target.size


@both_engines
@given(
    start=st.integers(0, 0xFFFF),
    batches=st.lists(st.integers(0, SIZE), max_size=10),
    events=st.lists(st.integers(0, 0xFFFF), min_size=10, max_size=10),
    nearby=st.booleans(),
)
def test_interrupts_by_event_index(
    start: int, batches: list[int], events: list[int], nearby: bool, engine: str
) -> None:
    """VIRTIO 1.2 §2.7.7.2: "if the VIRTIO_F_EVENT_IDX feature bit is negotiated: […] If the idx field in the used ring
    (which determined where that descriptor index was placed) was equal to used_event, the device MUST send a
    notification. Otherwise the device SHOULD NOT send a notification."
    """
    with guest_memory() as memory:
        driver, queue = ring(memory, Feature.EVENT_IDX, start, engine)
        for count, choice in zip(batches, events, strict=False):
            event = (queue.next_used + choice % 10 - 2) & 0xFFFF if nearby else choice
            driver.set_used_event(event)
            placed = [(queue.next_used + n) & 0xFFFF for n in range(count)]
            for _ in range(count):
                queue.push(0, 0)
            assert queue.publish() == (event in placed)


@both_engines
@given(start=st.integers(0, 0xFFFF), jumps=st.lists(st.integers(0, 0xFFFF), max_size=20))
def test_the_available_index_is_never_believed_beyond_the_ring(start: int, jumps: list[int], engine: str) -> None:
    """VIRTIO 1.2 §2.7.6.1: "A driver MUST NOT decrement the available idx on a virtqueue (ie. there is no way to
    “unexpose” buffers)"; and there are never more buffers than descriptors.
    """
    with guest_memory() as memory:
        driver, queue = ring(memory, 0, start, engine)
        driver.set_descriptor(0, 0x8000, 4, 0, 0)
        for jump in jumps:
            ahead = (jump - queue.next_avail) & 0xFFFF
            driver.set_avail_idx(jump)
            popped = 0
            try:
                while queue.pop() is not None:
                    popped += 1
            except GuestFault:
                assert ahead > SIZE
                assert popped == 0
                return
            assert popped == ahead


def _outcome(queue: VirtQueue | NativeQueue) -> object:
    """What `pop` says, in a form that can be compared."""
    try:
        popped = queue.pop()
    except GuestFault as fault:
        return type(fault), str(fault)
    if popped is None:
        return None
    pieces = [ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in popped.readable + popped.writable]
    sizes = [len(view) for view in popped.readable], [len(view) for view in popped.writable]
    return popped.head, pieces, sizes, popped.readable_bytes, popped.writable_bytes


@pytest.mark.skipif(bool(missing), reason=missing)
@given(
    table=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    inner=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)), min_size=SIZE, max_size=SIZE),
    aim=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE), st.integers(0x7FF8, 0x8008)), max_size=4),
    features=st.sampled_from([0, Feature.INDIRECT_DESC, Feature.EVENT_IDX | Feature.INDIRECT_DESC]),
    start=st.sampled_from([0, 5, 0xFFFD]),
    jumps=st.lists(st.one_of(st.integers(0, SIZE + 1), st.integers(0, 0xFFFF)), min_size=1, max_size=4),
    drivers_wish=st.integers(0, 0xFFFF),
)
def test_both_engines_do_the_same_with_any_ring(
    *,
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    heads: list[int],
    aim: list[tuple[int, int, int]],
    features: int,
    start: int,
    jumps: list[int],
    drivers_wish: int,
) -> None:
    """The Python ring is the reference: chains, faults in their words, used rings and interrupts are equal."""
    for index, count, gpa in aim:
        table[index] = (gpa, 16 * count, DescFlag.INDIRECT, 0)
    with guest_memory() as memory:
        seen = []
        for engine in ("python", "native"):
            memory.write(0, bytes(0x9000))
            driver, queue = ring(memory, features, start, engine)
            memory.write(driver.desc, b"".join(DESC.pack(*descriptor) for descriptor in table))
            memory.write(0x8000, b"".join(DESC.pack(*descriptor) for descriptor in inner))
            memory.write(driver.driver + 4, struct.pack(f"<{SIZE}H", *heads))
            driver.set_avail_flags(drivers_wish & 1)
            driver.set_used_event(drivers_wish)
            events: list[object] = []
            for jump in jumps:
                driver.set_avail_idx(driver.avail_idx + jump)
                queue.suppress_kicks()
                while isinstance(outcome := _outcome(queue), tuple) and len(outcome) > 2:
                    events.append(outcome)
                    queue.push(outcome[0], outcome[4] & 0xFFFF_FFFF)
                events += [outcome, queue.publish(), queue.next_avail, queue.next_used]
                if outcome is None:
                    events.append(queue.want_kicks())
            seen.append((events, memory.read(driver.device, 6 + 8 * SIZE)))
            del queue
        assert seen[0] == seen[1]
