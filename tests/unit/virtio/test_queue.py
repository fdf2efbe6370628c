"""Split rings: configuration, indices that wrap, batches, notifications either way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.driver import MIB, Arena, DriverQueue
from tests.fakes.native import NativeQueue, both_engines
from vmm.errors import GuestFault
from vmm.memory import GuestMemory
from vmm.virtio.queue import QueueConfig, QueueError, VirtQueue
from vmm.virtio.spec import Feature


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(4 * MIB)
    yield made
    made.close()


def pair(memory: GuestMemory, size: int = 8, features: int = 0) -> tuple[DriverQueue, VirtQueue]:
    driver = DriverQueue(Arena(memory, 0x1000, memory.memory_bytes), size, event_idx=bool(features & Feature.EVENT_IDX))
    return driver, configured(driver).activate(memory, features)


def engine_pair(
    engine: str, memory: GuestMemory, size: int = 8, features: int = 0
) -> tuple[DriverQueue, VirtQueue | NativeQueue]:
    driver, queue = pair(memory, size, features)
    return driver, NativeQueue(memory, queue) if engine == "native" else queue


def configured(driver: DriverQueue) -> QueueConfig:
    config = QueueConfig(256)
    config.size, config.desc, config.driver, config.device = driver.size, driver.desc, driver.driver, driver.device
    return config


def serve_one(queue: VirtQueue | NativeQueue, written: int = 0) -> int:
    chain = queue.pop()
    assert chain is not None
    queue.push(chain.head, written)
    return chain.head


@both_engines
@pytest.mark.parametrize("features", [0, Feature.EVENT_IDX])
def test_buffers_go_round_and_round(engine: str, memory: GuestMemory, features: int) -> None:
    driver, queue = engine_pair(engine, memory, 4, features)
    for turn in range(70_000 // 4):
        if turn % 1000 == 0:
            driver.arena = Arena(memory, 0x10_0000, memory.memory_bytes)
        heads = [driver.add([driver.arena.readable(b"x")]) for _ in range(4)]
        assert [serve_one(queue, turn) for _ in range(4)] == heads
        assert queue.pop() is None
        queue.publish()
        assert driver.collect() == [(head, turn) for head in heads]


@both_engines
def test_used_buffers_are_seen_all_at_once(engine: str, memory: GuestMemory) -> None:
    driver, queue = engine_pair(engine, memory)
    heads = [driver.add([driver.arena.writable(4)]) for _ in range(3)]
    for _ in heads:
        serve_one(queue)
        assert driver.collect() == []
    assert queue.publish()
    assert [head for head, _ in driver.collect()] == heads
    assert not queue.publish(), "nothing new: no interrupt"


@both_engines
def test_unpop_gives_the_same_buffer_again(engine: str, memory: GuestMemory) -> None:
    driver, queue = engine_pair(engine, memory)
    heads = [driver.add([driver.arena.writable(4)]) for _ in range(2)]
    first = queue.pop()
    queue.unpop()
    assert first is not None
    assert [serve_one(queue), serve_one(queue)] == heads


@both_engines
@pytest.mark.parametrize("jump", [9, 100, 0x7FFF, -1, -8])
def test_avail_idx_must_not_jump(engine: str, memory: GuestMemory, jump: int) -> None:
    driver, queue = engine_pair(engine, memory)
    driver.set_avail_idx(jump)
    for look in (queue.pop, queue.want_kicks):
        with pytest.raises(QueueError, match="jumped"):
            look()


@both_engines
def test_a_bad_chain_stays_in_the_queue(engine: str, memory: GuestMemory) -> None:
    driver, queue = engine_pair(engine, memory)
    driver.offer(99)
    for _ in range(2):
        with pytest.raises(GuestFault, match="descriptor 99"):
            queue.pop()


@both_engines
def test_interrupts_by_flag(engine: str, memory: GuestMemory) -> None:
    driver, queue = engine_pair(engine, memory)
    driver.set_avail_flags(1)
    driver.add([driver.arena.writable(4)])
    serve_one(queue)
    assert not queue.publish()
    driver.set_avail_flags(0)
    driver.add([driver.arena.writable(4)])
    serve_one(queue)
    assert queue.publish()


@both_engines
@pytest.mark.parametrize("used_event", range(-3, 6))
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_interrupts_by_event_index(engine: str, memory: GuestMemory, used_event: int, batch: int) -> None:
    driver, queue = engine_pair(engine, memory, features=Feature.EVENT_IDX)
    driver.set_used_event(used_event)
    driver.set_avail_flags(1)  # means nothing once EVENT_IDX is negotiated
    for _ in range(batch):
        driver.add([driver.arena.writable(4)])
        serve_one(queue)
    assert queue.publish() == (0 <= used_event < batch)


@both_engines
@pytest.mark.parametrize("features", [0, Feature.EVENT_IDX])
def test_kicks_are_wanted_only_when_asked_for(engine: str, memory: GuestMemory, features: int) -> None:
    driver, queue = engine_pair(engine, memory, features=features)
    queue.suppress_kicks()
    driver.kick_wanted()
    driver.add([driver.arena.writable(4)])
    if features:
        serve_one(queue)
        driver.kick_wanted()
        driver.add([driver.arena.writable(4)])
    assert not driver.kick_wanted()
    assert not queue.want_kicks(), "a buffer is there already"
    serve_one(queue)
    assert queue.want_kicks()
    driver.kick_wanted()
    driver.add([driver.arena.writable(4)])
    assert driver.kick_wanted()


def test_a_stopped_queue_is_left_alone(memory: GuestMemory) -> None:
    driver, queue = pair(memory, features=Feature.EVENT_IDX)
    for _ in range(3):
        driver.add([driver.arena.writable(4)])
    chain = queue.pop()
    assert chain is not None
    rings = memory.read(driver.device, 6 + 8 * driver.size)
    queue.stop()
    queue.push(chain.head, 4)
    queue.suppress_kicks()
    assert queue.pop() is None
    queue.unpop()
    assert queue.pop() is None
    assert queue.want_kicks()
    assert not queue.publish()
    assert memory.read(driver.device, 6 + 8 * driver.size) == rings


@pytest.mark.parametrize("size", [0, 3, 255, 512, 65536, 0xFFFF_FFFF])
def test_bad_sizes(memory: GuestMemory, size: int) -> None:
    config = configured(pair(memory)[0])
    config.size = size
    with pytest.raises(QueueError, match="queue size"):
        config.activate(memory, 0)


@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@pytest.mark.parametrize("gpa", [4 * MIB, 4 * MIB - 16, 0xD000_0000, 1 << 32, (1 << 64) - 16, 0x1001, 0x1_0001])
def test_bad_areas(memory: GuestMemory, area: str, gpa: int) -> None:
    config = configured(pair(memory)[0])
    setattr(config, area, gpa)
    with pytest.raises(QueueError, match=f"{gpa:#x}"):
        config.activate(memory, 0)


def test_a_ring_may_end_where_ram_ends(memory: GuestMemory) -> None:
    config = configured(pair(memory)[0])
    config.desc = memory.memory_bytes - 16 * config.size
    config.activate(memory, 0)


@both_engines
def test_the_indirect_limit_is_the_devices_not_the_drivers(engine: str, memory: GuestMemory) -> None:
    driver, queue = engine_pair(engine, memory, 2, Feature.INDIRECT_DESC)
    driver.add([driver.arena.readable(b"x") for _ in range(256)], indirect=True)
    chain = queue.pop()
    assert chain is not None
    assert chain.readable_bytes == 256
