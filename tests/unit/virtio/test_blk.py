"""The block device: requests in every framing, flushes that mean it, and disks and drivers that fail."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blk import BlkRig, header
from tests.fakes.disk import DroppingDisk
from tests.fakes.driver import Arena, Buffer
from tests.fakes.native import missing
from vmm.config import Rate
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import BlkFeature, RequestStatus, RequestType
from vmm.virtio.spec import Feature, Status

IN, OUT, FLUSH, GET_ID = RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID
DISCARD, WRITE_ZEROES = RequestType.DISCARD, RequestType.WRITE_ZEROES
OK, IOERR, UNSUPP = RequestStatus.OK, RequestStatus.IOERR, RequestStatus.UNSUPP
SECTORS = 64
CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), SECTORS * 512))

MakeRig = Callable[..., BlkRig]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


#: The native engine has two ways to wait for a disk.
@pytest.fixture(params=["python", "native", "threads"])
def engine(request: pytest.FixtureRequest) -> str:
    if missing and request.param != "python":
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture
def make_rig(image: Path, engine: str) -> Iterator[MakeRig]:
    rigs: list[tuple[BlkRig, RawDisk]] = []

    def make(disk: RawDisk | None = None, *, engine: str = engine, **options: Any) -> BlkRig:
        of_disk = {name: options.pop(name) for name in ("readonly", "serial", "cache") if name in options}
        disk = disk or RawDisk(str(image), **of_disk)
        rigs.append((BlkRig(engine, disk, **options), disk))
        return rigs[-1][0]

    yield make
    for rig, disk in rigs:
        rig.close()
        disk.close()


@pytest.fixture
def rig(make_rig: MakeRig) -> BlkRig:
    made = make_rig()
    made.driver.start()
    return made


# What a disk does.


def test_config_space(rig: BlkRig) -> None:
    assert rig.driver.read(0x08) == 2
    assert rig.driver.read(0x100, 8) == SECTORS
    assert rig.driver.read(0x10C) == 254
    assert rig.driver.read(0x114) == 512
    assert rig.driver.read(0x118, 8) == 0
    wanted = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH | BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
    assert rig.driver.offered() & 0xFF_FFFF == wanted
    assert rig.driver.read(0x122, 2) == 1
    assert [rig.driver.read(at) for at in (0x124, 0x128, 0x12C)] == [1 << 21, 1, 1], "discards"
    assert [rig.driver.read(at) for at in (0x130, 0x134)] == [1 << 16, 1], "zeroes"
    assert rig.driver.read(0x138, 1) == 1


def test_read(rig: BlkRig) -> None:
    assert rig.request(IN, 3, room=1024) == (OK, CONTENT[3 * 512 : 5 * 512], 1025)
    counts = rig.counted()
    assert (counts["read"], counts["bytes_read"]) == (1, 1024)


def test_requests_are_traced(make_rig: MakeRig) -> None:
    rig = make_rig(engine="python")
    rig.driver.start()
    rig.request(IN, 3, room=1024)
    assert rig.traced[-1] == "vda IN sector 0x3 +1024 -> OK"


def test_write_and_read_back(rig: BlkRig) -> None:
    data = b"\xaa" * 512 + b"\x55" * 512
    assert rig.request(OUT, 62, data=data) == (OK, b"", 1)
    assert rig.request(IN, 62, room=1024)[1] == data
    assert rig.counted()["bytes_written"] == 1024


def test_the_whole_disk_and_not_a_sector_more(rig: BlkRig) -> None:
    assert rig.request(IN, 0, room=SECTORS * 512)[:2] == (OK, CONTENT)
    assert rig.request(IN, SECTORS, room=512)[0] == IOERR
    assert rig.request(IN, SECTORS - 1, room=1024)[0] == IOERR
    assert rig.request(OUT, SECTORS, data=bytes(512))[0] == IOERR
    assert rig.request(IN, (1 << 64) - 1, room=512)[0] == IOERR
    assert rig.request(OUT, 1 << 55, data=bytes(512))[0] == IOERR
    assert rig.counted()["errors"] == 5
    assert rig.faults == []


@pytest.mark.parametrize(
    ("serial", "expected"), [("", bytes(20)), ("disk-1", b"disk-1" + bytes(14)), ("x" * 20, b"x" * 20)]
)
def test_serial(make_rig: MakeRig, serial: str, expected: bytes) -> None:
    rig = make_rig(serial=serial)
    rig.driver.start()
    assert rig.request(GET_ID, room=20) == (OK, expected, 21)
    assert rig.request(GET_ID, room=8) == (OK, expected[:8], 9)
    assert rig.request(GET_ID, room=30) == (OK, expected + b"\xcc" * 10, 20)
    assert rig.request(GET_ID) == (OK, b"", 1)


@pytest.fixture
def dropping(image: Path) -> DroppingDisk:
    return DroppingDisk(str(image))


@pytest.fixture
def dropping_rig(dropping: DroppingDisk, make_rig: MakeRig) -> BlkRig:
    made = make_rig(dropping, engine="python")
    made.driver.start()
    return made


def test_flush_is_on_the_disk_before_it_is_acknowledged(
    dropping_rig: BlkRig, dropping: DroppingDisk, image: Path
) -> None:
    data = b"\xee" * 512
    assert dropping_rig.request(OUT, 7, data=data)[0] == OK
    assert dropping.unsynced_bytes == 512, "a write alone may be lost"
    assert dropping_rig.request(FLUSH)[0] == OK
    dropping.cut()
    assert image.read_bytes()[7 * 512 : 8 * 512] == data


def test_without_a_flush_the_write_is_lost(dropping_rig: BlkRig, dropping: DroppingDisk, image: Path) -> None:
    assert dropping_rig.request(OUT, 7, data=b"\xee" * 512)[0] == OK
    dropping.cut()
    assert image.read_bytes() == CONTENT


def test_flush_comes_before_the_used_index(dropping_rig: BlkRig, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = dropping_rig.driver.queues[0]
    seen: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(DroppingDisk, "flush", lambda _self: seen.append(queue.collect()))
    assert dropping_rig.request(FLUSH)[0] == OK
    assert seen == [[]]


def test_a_driver_that_cannot_flush_has_stable_writes(make_rig: MakeRig, dropping: DroppingDisk, image: Path) -> None:
    rig = make_rig(dropping, engine="python")
    rig.driver.start(Feature.VERSION_1)
    assert rig.request(OUT, 0, data=b"\xee" * 512)[0] == OK
    dropping.cut()
    assert image.read_bytes()[:512] == b"\xee" * 512


def test_a_read_only_disk_is_never_written(make_rig: MakeRig, image: Path) -> None:
    rig = make_rig(readonly=True)
    assert rig.driver.offered() & BlkFeature.RO
    rig.driver.start(Feature.VERSION_1)  # without RO: a driver that does not know
    assert rig.request(OUT, 0, data=bytes(512))[0] == IOERR
    assert rig.request(FLUSH)[0] == OK
    assert rig.request(IN, 0, room=512)[:2] == (OK, CONTENT[:512])
    assert rig.request(WRITE_ZEROES, data=segment(0, 1))[0] == UNSUPP
    assert image.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", [2, 3, 5, 14, 0xFFFF_FFFF])
def test_unknown_requests(rig: BlkRig, kind: int) -> None:
    assert rig.request(kind, data=bytes(16))[0] == UNSUPP
    assert rig.counted()["unsupported"] == 1


# Discards and zeroes.


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)])
def test_discarded_and_zeroed_sectors_read_as_zeroes(rig: BlkRig, kind: int, flags: int) -> None:
    assert rig.request(kind, data=segment(8, 16, flags)) == (OK, b"", 1)
    zeroed = CONTENT[: 8 * 512] + bytes(16 * 512) + CONTENT[24 * 512 :]
    assert rig.request(IN, 0, room=SECTORS * 512)[1] == zeroed
    name = "discard" if kind == DISCARD else "write_zeroes"
    assert rig.counted()[name] == 1


def test_a_discard_gives_space_back(make_rig: MakeRig, image: Path) -> None:
    size = 1 << 20
    image.write_bytes(b"x" * size)
    rig = make_rig()
    rig.driver.start()
    before = image.stat().st_blocks
    assert rig.request(DISCARD, data=segment(0, size // 512))[0] == OK
    assert image.stat().st_blocks < before
    assert image.stat().st_size == size


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (DISCARD, segment(0, 1, 1), UNSUPP),
        (DISCARD, segment(0, 1, 2), UNSUPP),
        (WRITE_ZEROES, segment(0, 1, 2), UNSUPP),
        (DISCARD, segment(SECTORS, 1), IOERR),
        (WRITE_ZEROES, segment(SECTORS - 1, 2), IOERR),
        (WRITE_ZEROES, segment((1 << 64) - 1, 1), IOERR),
        (WRITE_ZEROES, segment(1 << 55, 1), IOERR),
        (WRITE_ZEROES, segment(0, 1 << 31), IOERR),
        (DISCARD, segment(0, 0xFFFF_FFFF), IOERR),
        (DISCARD, segment(0, 1) * 2, IOERR),
        (DISCARD, b"", IOERR),
        (WRITE_ZEROES, segment(0, 1)[:15], IOERR),
        (DISCARD, segment(5, 0), OK),
    ],
)
def test_segments_that_cannot_be(rig: BlkRig, kind: int, data: bytes, status: int) -> None:
    assert rig.request(kind, data=data)[0] == status
    assert rig.request(IN, 0, room=SECTORS * 512)[1] == CONTENT
    assert rig.faults == []


def test_what_was_not_negotiated_is_not_done(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.driver.start(Feature.VERSION_1)
    assert rig.request(DISCARD, data=segment(0, 1))[0] == UNSUPP
    assert rig.request(WRITE_ZEROES, data=segment(0, 1))[0] == UNSUPP


# Queues, caches, limits.


def test_every_queue_is_served(make_rig: MakeRig) -> None:
    rig = make_rig(queues=3)
    assert rig.driver.offered() & BlkFeature.MQ
    assert rig.driver.read(0x122, 2) == 3
    rig.driver.start()
    for index in (2, 0, 1):
        assert rig.request(OUT, index, data=bytes([index]) * 512, index=index)[0] == OK
    assert rig.request(IN, 0, room=1536, index=1)[1] == b"\0" * 512 + b"\1" * 512 + b"\2" * 512


@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_every_cache_mode_is_a_disk(make_rig: MakeRig, image: Path, cache: str) -> None:
    rig = make_rig(cache=cache)
    rig.driver.start()
    page = rig.arena.reserve(4096, 4096)
    odd = rig.arena.reserve(4096 + 512, 512) + 3
    for gpa in (page, odd):
        data = os.urandom(4096)
        rig.memory.write(gpa, data)
        status = rig.arena.writable(1)
        assert rig.submit([rig.arena.readable(header(OUT, 8)), Buffer(gpa, 4096), status]) == 1
        assert rig.arena.content(status) == b"\0"
        assert rig.request(FLUSH)[0] == OK
        assert image.read_bytes()[8 * 512 : 16 * 512] == data
        assert rig.submit([rig.arena.readable(header(IN, 8)), Buffer(page, 4096, writable=True), status]) == 4097
        assert rig.memory.read(page, 4096) == data
    assert rig.request(IN, 3, room=512)[1] == CONTENT[3 * 512 : 4 * 512]


@pytest.mark.parametrize("limit", [(Rate(per_second=100, burst=5), None), (None, Rate(per_second=51200, burst=2560))])
def test_limits(make_rig: MakeRig, limit: tuple[Rate | None, Rate | None]) -> None:
    rig = make_rig()
    rig.driver.start()
    rig.blk.set_limits(*limit)
    started = time.monotonic()
    for _ in range(15):
        assert rig.request(IN, room=512)[0] == OK
    assert 0.08 < time.monotonic() - started < 1, "5 at once, then 100 a second"


def test_a_limit_can_be_lifted(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.driver.start()
    rig.blk.set_limits(Rate(per_second=1, burst=1), None)
    assert rig.request(IN, room=512)[0] == OK
    rig.blk.set_limits(None, None)
    started = time.monotonic()
    for _ in range(10):
        assert rig.request(IN, room=512)[0] == OK
    assert time.monotonic() - started < 0.5


# Framing (VIRTIO 1.2 §2.7.4: the device makes no assumptions about it).


def cut(rig: BlkRig, data: bytes, *at: int) -> list[Buffer]:
    edges = [0, *at, len(data)]
    return [rig.arena.readable(data[start:end]) for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("at", [(), (16,), (8,), (1, 15), (4, 8, 16, 100), (16, 17, 527), (20,)])
def test_header_and_data_are_cut_anywhere(rig: BlkRig, at: tuple[int, ...], indirect: bool) -> None:
    data = bytes(range(256)) * 2
    status = rig.arena.writable(1)
    assert rig.submit([*cut(rig, header(OUT, 5) + data, *at), status], indirect=indirect) == 1
    assert rig.arena.content(status) == b"\0"
    assert rig.request(IN, 5, room=512)[1] == data


@pytest.mark.parametrize("sizes", [(513,), (1, 512), (512, 1), (100, 413), (1,) * 200 + (313,)])
def test_data_and_status_share_descriptors(rig: BlkRig, sizes: tuple[int, ...]) -> None:
    pieces = [rig.arena.writable(size) for size in sizes]
    assert rig.submit([rig.arena.readable(header(IN, 1)), *pieces]) == 513
    assert b"".join(map(rig.arena.content, pieces)) == CONTENT[512:1024] + b"\0"


def test_as_many_segments_as_promised(rig: BlkRig) -> None:
    pieces = [rig.arena.writable(512) for _ in range(SECTORS)] + [rig.arena.writable(1)]
    assert rig.submit([rig.arena.readable(header(IN)), *pieces], indirect=True) == SECTORS * 512 + 1
    many = [rig.arena.readable(b"z" * 2) for _ in range(253)] + [rig.arena.readable(b"z" * 6)]
    status = rig.arena.writable(1)
    rig.submit([rig.arena.readable(header(OUT)), *many, status], indirect=True)
    assert rig.arena.content(status) == b"\0"
    assert rig.request(IN, 0, room=512)[1] == b"z" * 512


@pytest.mark.parametrize("room", [1, 511, 513])
def test_reads_are_whole_sectors(rig: BlkRig, room: int) -> None:
    assert rig.request(IN, room=room) == (IOERR, b"\xcc" * room, 0)
    assert rig.request(OUT, data=b"z" * room)[0] == IOERR


def test_requests_without_data(rig: BlkRig) -> None:
    assert rig.request(IN) == (OK, b"", 1)
    assert rig.request(OUT) == (OK, b"", 1)


def test_no_room_for_the_status(rig: BlkRig) -> None:
    assert rig.submit([rig.arena.readable(header(OUT) + bytes(512))]) == 0
    assert rig.request(IN, 0, room=512)[1] == CONTENT[:512], "and nothing was written to the disk"
    assert rig.counted()["malformed"] == 1


@pytest.mark.parametrize("size", [1, 15])
def test_half_a_header(rig: BlkRig, size: int) -> None:
    status = rig.arena.writable(1)
    assert rig.submit([rig.arena.readable(header(IN)[:size]), status]) == 1
    assert rig.arena.content(status)[0] == IOERR


def test_no_header(rig: BlkRig) -> None:
    target = rig.arena.writable(513)
    assert rig.submit([target]) == 0
    assert rig.arena.content(target)[512] == IOERR


def test_a_batch_is_done_in_order_with_one_interrupt(rig: BlkRig) -> None:
    queue = rig.driver.queues[0]
    heads = []
    for value in range(10):
        data, status = rig.arena.readable(bytes([value]) * 512), rig.arena.writable(1)
        heads.append(queue.add([rig.arena.readable(header(OUT, 9)), data, status]))
    rig.driver.kick(0)
    assert [head for head, _ in rig.collect(10)] == heads
    assert rig.irq.pulses == 1
    assert rig.request(IN, 9, room=512)[1] == b"\x09" * 512


# Resets and queues taken back, with requests under way.


def offer_reads(rig: BlkRig, count: int) -> list[Buffer]:
    """Make *count* reads of the whole disk available, aligned so that nothing but the disk can serve them."""
    targets = []
    for _ in range(count):
        targets.append(Buffer(rig.arena.reserve(SECTORS * 512, 4096), SECTORS * 512, writable=True))
        request = [rig.arena.readable(header(IN)), targets[-1], rig.arena.writable(1)]
        rig.driver.queues[0].add(request, indirect=True)
    return targets


def test_after_a_reset_memory_is_touched_no_more(make_rig: MakeRig) -> None:
    rig = make_rig(cache="none")
    for count in range(1, 33):
        rig.arena = rig.driver.arena = Arena(rig.memory, 0x1_0000, rig.memory_bytes)
        rig.driver.start()
        targets = offer_reads(rig, count)
        rig.driver.kick(0)
        rig.driver.reset()
        for target in targets:
            rig.memory.write(target.gpa, bytes(target.size))
        time.sleep(0.001)
        for target in targets:
            assert not any(rig.arena.content(target))


def test_a_queue_that_is_taken_back_is_touched_no_more(make_rig: MakeRig) -> None:
    rig = make_rig(queues=2)
    rig.driver.start()
    assert rig.request(IN, 1, room=512)[0] == OK
    rig.driver.write(0x030, 0)
    rig.driver.write(0x044, 0)
    queue = rig.driver.queues[0]
    rings = rig.memory.read(queue.device, 6 + 8 * queue.size)
    offer_reads(rig, 3)
    rig.driver.kick(0)
    assert rig.request(IN, 1, room=512, index=1)[:2] == (OK, CONTENT[512:1024]), "the other one lives"
    assert rig.memory.read(queue.device, 6 + 8 * queue.size) == rings


def test_more_requests_than_can_be_under_way(make_rig: MakeRig) -> None:
    rig = make_rig(cache="none")
    rig.driver.start()
    queue = rig.driver.queues[0]
    target = Buffer(rig.arena.reserve(4096, 4096), 4096, writable=True)
    head = queue.add([rig.arena.readable(header(IN)), target, rig.arena.writable(1)], indirect=True)
    for _ in range(255):
        queue.offer(head)
    rig.driver.kick(0)
    used = rig.collect(256)
    for _ in range(256):  # the same chain again, as no honest driver does
        queue.offer(head)
    rig.driver.kick(0)
    used += rig.collect(256)
    assert used == [(head, 4097)] * 512
    assert rig.arena.content(target) == CONTENT[:4096]


def test_a_broken_ring_stops_the_device_and_what_came_before_counts(rig: BlkRig) -> None:
    queue = rig.driver.queues[0]
    queue.add([rig.arena.readable(header(OUT, 9) + b"z" * 512), rig.arena.writable(1)])
    queue.offer(999)
    rig.driver.kick(0)
    until(rig, lambda: bool(rig.faults))
    assert queue.collect() == [(0, 1)]
    assert rig.faults == ["vda: descriptor 999 of a table of 256; the device waits for a reset"]
    assert rig.driver.status & Status.DEVICE_NEEDS_RESET
    rig.driver.start()
    assert rig.request(IN, 9, room=512)[:2] == (OK, b"z" * 512)


# Disks that fail.


def failing(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, errno.errorcode[code])

    monkeypatch.setattr(f"os.{call}", fail)


@pytest.mark.parametrize(
    ("call", "kind", "code"),
    [("preadv", IN, errno.EIO), ("pwritev", OUT, errno.ENOSPC), ("fdatasync", FLUSH, errno.EIO)],
)
def test_a_failing_disk(
    make_rig: MakeRig, image: Path, monkeypatch: pytest.MonkeyPatch, *, call: str, kind: int, code: int
) -> None:
    rig = make_rig(engine="python")
    rig.driver.start()
    failing(monkeypatch, call, code)
    room, data = (512, b"") if kind == IN else (0, bytes(512) if kind == OUT else b"")
    status, _, written = rig.request(kind, 1, room=room, data=data)
    assert status == IOERR
    assert written == (0 if kind == IN else 1)
    assert len(rig.faults) == 1
    assert rig.faults[0].startswith(f"vda: {image}: ")
    monkeypatch.undo()
    assert rig.request(kind, 1, room=room, data=data)[0] == OK, "the VM lives, and the disk may recover"


def test_an_image_that_shrinks(rig: BlkRig, image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(512)
    assert rig.request(IN, 1, room=512)[0] == IOERR
    assert rig.faults == [f"vda: {image}: read of 512 bytes at 0x200: the file has shrunk"]


LARGE, FAR = 2 << 20, 3000  # an image of so many bytes, and a sector that is beyond the limit


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Sets how large files of this process may get: a disk that is full, for everybody."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_cannot_grow(make_rig: MakeRig, image: Path, limit_files: Callable[[int], None]) -> None:
    os.truncate(image, LARGE)
    rig = make_rig()
    rig.driver.start()
    limit_files(LARGE // 2)
    assert rig.request(OUT, FAR, data=bytes(512))[0] == IOERR
    assert rig.faults == [f"vda: {image}: write of 512 bytes at 0x177000 failed: File too large"]
    assert rig.request(OUT, 4, data=bytes(512))[0] == OK
    limit_files(LARGE)
    assert rig.request(OUT, FAR, data=bytes(512))[0] == OK


def test_a_write_that_fails_waits_for_the_user(
    make_rig: MakeRig, image: Path, limit_files: Callable[[int], None]
) -> None:
    os.truncate(image, LARGE)
    stalls: list[str] = []
    rig = make_rig(on_stall=stalls.append)
    rig.driver.start()
    limit_files(LARGE // 2)
    sectors, statuses = (1, FAR, 2, FAR + 1), []
    for value, sector in enumerate(sectors):
        statuses.append(rig.arena.writable(1))
        data = rig.arena.readable(bytes([value]) * 512)
        rig.driver.queues[0].add([rig.arena.readable(header(OUT, sector)), data, statuses[-1]])
    rig.driver.kick(0)
    until(rig, lambda: bool(stalls))
    assert stalls == [f"{image}: write of 512 bytes at 0x177000 failed: File too large"]
    rig.blk.resume()
    until(rig, lambda: len(stalls) == 2)
    limit_files(LARGE)
    rig.blk.resume()
    assert len(rig.collect(4)) == 4
    assert [rig.arena.content(status) for status in statuses] == [b"\0"] * 4
    content = image.read_bytes()
    for value, sector in enumerate(sectors):
        assert content[sector * 512 : (sector + 1) * 512] == bytes([value]) * 512
    assert rig.faults == []


def test_a_reset_forgets_a_write_that_waits(make_rig: MakeRig, image: Path, limit_files: Callable[[int], None]) -> None:
    os.truncate(image, LARGE)
    stalls: list[str] = []
    rig = make_rig(on_stall=stalls.append)
    rig.driver.start()
    limit_files(LARGE // 2)
    rig.driver.queues[0].add([rig.arena.readable(header(OUT, FAR) + b"x" * 512), rig.arena.writable(1)])
    rig.driver.kick(0)
    until(rig, lambda: bool(stalls))
    rig.driver.start()
    assert rig.request(IN, 1, room=512)[:2] == (OK, CONTENT[512:1024])
    rig.blk.resume()
    rig.serve()
    assert image.read_bytes() == CONTENT + bytes(LARGE - len(CONTENT))


def until(rig: BlkRig, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        rig.serve()


def test_a_disk_that_always_fails_does_not_flood_the_log(rig: BlkRig, image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(512)
    for _ in range(100):
        assert rig.request(IN, 1, room=512)[0] == IOERR
    assert len(rig.faults) < 10
