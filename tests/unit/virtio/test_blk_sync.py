"""A flush has reached the disk before the driver hears of it, whichever way the native engine asks for it.

The disk is a file in a file system of the test's own, which answers a sync when the test wants.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest

from tests.fakes.blk import BlkRig, header
from tests.fakes.fuse import FuseFile, missing_fuse
from tests.fakes.native import missing
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestStatus, RequestType
from vmm.virtio.spec import Feature

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(missing), reason=missing),
    pytest.mark.skipif(bool(missing_fuse()), reason=missing_fuse()),
]

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
OK, IOERR = RequestStatus.OK, RequestStatus.IOERR
SECTORS = 64
#: The threads that the two kinds of engine have do their work: io_uring's, which the kernel makes, and their own.
THREADS = {"native": "iou-wrk-", "threads": "blk-io"}
#: How long a device may betray itself by telling of what is not done.
LOOK_S = 0.1


@pytest.fixture
def file() -> Iterator[FuseFile]:
    with FuseFile(SECTORS * 512) as made:
        yield made


@pytest.fixture(params=THREADS)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["writeback", "none"])
def rig(request: pytest.FixtureRequest, engine: str, file: FuseFile) -> Iterator[BlkRig]:
    disk = RawDisk(file.path, cache=request.param)
    made = BlkRig(engine, disk)
    yield made
    file.release()  # or the device would wait for what a failed test has not answered
    made.close()
    disk.close()


class Request:
    """One that was made available to the device."""

    def __init__(self, rig: BlkRig, kind: int, sector: int = 0, *, data: bytes = b"", room: int = 0) -> None:
        queue, arena = rig.driver.queues[0], rig.arena
        buffers = [arena.readable(header(kind, sector) + data), *([arena.writable(room)] if room else [])]
        self._rig, self._status = rig, arena.writable(1)
        self.head = queue.add([*buffers, self._status])
        rig.driver.kick(0)

    @property
    def status(self) -> int:
        return self._rig.arena.content(self._status)[0]


def test_a_flush_is_published_when_its_sync_is_done(rig: BlkRig, file: FuseFile, engine: str) -> None:
    rig.driver.start()
    queue = rig.driver.queues[0]
    data = [bytes([value]) * 512 for value in (1, 2, 3)]
    for sector, block in enumerate(data):
        assert rig.request(OUT, sector, data=block)[0] == OK
    flush = Request(rig, FLUSH)
    sync = file.next_sync()
    assert sync.thread.startswith(THREADS[engine])
    assert file.log == [*((512 * sector, block) for sector, block in enumerate(data)), None]
    time.sleep(LOOK_S)
    assert queue.collect() == []
    read = Request(rig, IN, room=512)
    assert rig.collect() == [(read.head, 513)], "the device is not merely stuck"
    sync.answer()
    assert rig.collect() == [(flush.head, 1)]
    assert flush.status == OK


def test_a_failing_sync_is_a_failing_flush(rig: BlkRig, file: FuseFile) -> None:
    rig.driver.start()
    flush = Request(rig, FLUSH)
    file.next_sync().answer(errno.EIO)
    assert rig.collect() == [(flush.head, 1)]
    assert flush.status == IOERR


def test_each_of_several_flushes_waits_for_its_own_sync(rig: BlkRig, file: FuseFile) -> None:
    rig.driver.start()
    flushes = [Request(rig, FLUSH) for _ in range(3)]
    heads = []
    for _ in flushes:
        sync = file.next_sync()
        assert rig.driver.queues[0].collect() == []
        sync.answer()
        heads += [head for head, _ in rig.collect()]
    assert sorted(heads) == sorted(flush.head for flush in flushes)


def test_without_flushes_each_write_is_published_when_its_sync_is_done(rig: BlkRig, file: FuseFile) -> None:
    rig.driver.start(Feature.VERSION_1)
    write = Request(rig, OUT, 5, data=b"x" * 512)
    sync = file.next_sync()
    assert file.log == [(5 * 512, b"x" * 512), None]
    time.sleep(LOOK_S)
    assert rig.driver.queues[0].collect() == []
    sync.answer()
    assert rig.collect() == [(write.head, 1)]
    assert write.status == OK
