"""The block device: requests in every framing, flushes that mean it, and disks and drivers that fail."""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.disk import DroppingDisk
from tests.fakes.driver import Buffer, Rig
from tests.unit.virtio.conftest import MakeRig
from vmm.errors import BackendError
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import BlkDevice, BlkFeature, RequestStatus, RequestType
from vmm.virtio.spec import Feature

IN, OUT, FLUSH, GET_ID = RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID
OK, IOERR, UNSUPP = RequestStatus.OK, RequestStatus.IOERR, RequestStatus.UNSUPP
SECTORS = 64
CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), SECTORS * 512))

OpenDisk = Callable[..., DroppingDisk]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def open_disk(image: Path) -> Iterator[OpenDisk]:
    disks: list[DroppingDisk] = []

    def make(*, readonly: bool = False, serial: str = "") -> DroppingDisk:
        disks.append(DroppingDisk(str(image), readonly=readonly, serial=serial))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@pytest.fixture
def disk(open_disk: OpenDisk) -> DroppingDisk:
    return open_disk()


@pytest.fixture
def rig(disk: DroppingDisk, make_rig: MakeRig) -> Rig:
    made = make_rig(BlkDevice("vda", disk), tracing=True)
    made.driver.start()
    return made


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def submit(rig: Rig, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
    """Send one request; the written length."""
    queue = rig.driver.queues[0]
    head = queue.add(buffers, indirect=indirect)
    rig.driver.kick(0)
    ((used, written),) = queue.collect()
    assert used == head
    return written


def request(rig: Rig, kind: int, sector: int = 0, *, data: bytes = b"", room: int = 0) -> tuple[int, bytes, int]:
    """One request in the usual framing; its status, the data read, and the written length."""
    target, status = rig.arena.writable(max(room, 1)), rig.arena.writable(1)
    buffers = [rig.arena.readable(header(kind, sector))]
    if data:
        buffers.append(rig.arena.readable(data))
    if room:
        buffers.append(target)
    written = submit(rig, [*buffers, status])
    return rig.arena.content(status)[0], rig.arena.content(target) if room else b"", written


# What a disk does.


def test_config_space(rig: Rig) -> None:
    assert rig.driver.read(0x08) == 2
    assert rig.driver.read(0x100, 8) == SECTORS
    assert rig.driver.read(0x10C) == 254
    assert rig.driver.read(0x114) == 512
    assert rig.driver.read(0x118, 8) == 0
    wanted = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH
    assert rig.driver.offered() & 0xFF_FFFF == wanted


def test_read(rig: Rig) -> None:
    assert request(rig, IN, 3, room=1024) == (OK, CONTENT[3 * 512 : 5 * 512], 1025)
    assert rig.traced[-1] == "vda IN sector 0x3 +1024 -> OK"
    assert rig.tally.counts["vda.read"] == 1
    assert rig.tally.counts["vda.bytes_read"] == 1024


def test_write_and_read_back(rig: Rig) -> None:
    data = b"\xaa" * 512 + b"\x55" * 512
    assert request(rig, OUT, 62, data=data) == (OK, b"", 1)
    assert request(rig, IN, 62, room=1024)[1] == data
    assert rig.tally.counts["vda.bytes_written"] == 1024


def test_the_whole_disk_and_not_a_sector_more(rig: Rig) -> None:
    assert request(rig, IN, 0, room=SECTORS * 512)[:2] == (OK, CONTENT)
    assert request(rig, IN, SECTORS, room=512)[0] == IOERR
    assert request(rig, IN, SECTORS - 1, room=1024)[0] == IOERR
    assert request(rig, OUT, SECTORS, data=bytes(512))[0] == IOERR
    assert request(rig, IN, (1 << 64) - 1, room=512)[0] == IOERR
    assert request(rig, OUT, 1 << 55, data=bytes(512))[0] == IOERR
    assert rig.tally.counts["vda.errors"] == 5
    assert rig.faults == []


@pytest.mark.parametrize(
    ("serial", "expected"), [("", bytes(20)), ("disk-1", b"disk-1" + bytes(14)), ("x" * 20, b"x" * 20)]
)
def test_serial(open_disk: OpenDisk, make_rig: MakeRig, serial: str, expected: bytes) -> None:
    rig = make_rig(BlkDevice("vda", open_disk(serial=serial)))
    rig.driver.start()
    assert request(rig, GET_ID, room=20) == (OK, expected, 21)
    assert request(rig, GET_ID, room=8) == (OK, expected[:8], 9)
    assert request(rig, GET_ID, room=30) == (OK, expected + b"\xcc" * 10, 20)
    assert request(rig, GET_ID) == (OK, b"", 1)


def test_flush_is_on_the_disk_before_it_is_acknowledged(rig: Rig, disk: DroppingDisk, image: Path) -> None:
    data = b"\xee" * 512
    assert request(rig, OUT, 7, data=data)[0] == OK
    assert disk.unsynced_bytes == 512, "a write alone may be lost"
    assert request(rig, FLUSH)[0] == OK
    disk.cut()
    assert image.read_bytes()[7 * 512 : 8 * 512] == data


def test_without_a_flush_the_write_is_lost(rig: Rig, disk: DroppingDisk, image: Path) -> None:
    assert request(rig, OUT, 7, data=b"\xee" * 512)[0] == OK
    disk.cut()
    assert image.read_bytes() == CONTENT


def test_flush_comes_before_the_used_index(rig: Rig, disk: DroppingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = rig.driver.queues[0]
    seen: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(DroppingDisk, "flush", lambda _self: seen.append(queue.collect()))
    assert request(rig, FLUSH)[0] == OK
    assert seen == [[]]


def test_a_driver_that_cannot_flush_has_stable_writes(disk: DroppingDisk, make_rig: MakeRig, image: Path) -> None:
    rig = make_rig(BlkDevice("vda", disk))
    rig.driver.start(Feature.VERSION_1)
    assert request(rig, OUT, 0, data=b"\xee" * 512)[0] == OK
    disk.cut()
    assert image.read_bytes()[:512] == b"\xee" * 512


def test_a_read_only_disk_is_never_written(open_disk: OpenDisk, make_rig: MakeRig, image: Path) -> None:
    disk = open_disk(readonly=True)
    rig = make_rig(BlkDevice("vda", disk))
    assert rig.driver.offered() & BlkFeature.RO
    rig.driver.start(Feature.VERSION_1)  # without RO: a driver that does not know
    assert request(rig, OUT, 0, data=bytes(512))[0] == IOERR
    assert request(rig, FLUSH)[0] == OK
    assert request(rig, IN, 0, room=512)[:2] == (OK, CONTENT[:512])
    assert disk.unsynced_bytes == 0
    assert image.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", [2, 3, 5, 11, 13, 14, 0xFFFF_FFFF])
def test_unknown_requests(rig: Rig, kind: int) -> None:
    assert request(rig, kind, data=bytes(16))[0] == UNSUPP
    assert rig.tally.counts["vda.unsupported"] == 1


# Framing (VIRTIO 1.2 §2.7.4: the device makes no assumptions about it).


def cut(rig: Rig, data: bytes, *at: int) -> list[Buffer]:
    edges = [0, *at, len(data)]
    return [rig.arena.readable(data[start:end]) for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("at", [(), (16,), (8,), (1, 15), (4, 8, 16, 100), (16, 17, 527), (20,)])
def test_header_and_data_are_cut_anywhere(rig: Rig, at: tuple[int, ...], indirect: bool) -> None:
    data = bytes(range(256)) * 2
    status = rig.arena.writable(1)
    assert submit(rig, [*cut(rig, header(OUT, 5) + data, *at), status], indirect=indirect) == 1
    assert rig.arena.content(status) == b"\0"
    assert request(rig, IN, 5, room=512)[1] == data


@pytest.mark.parametrize("sizes", [(513,), (1, 512), (512, 1), (100, 413), (1,) * 200 + (313,)])
def test_data_and_status_share_descriptors(rig: Rig, sizes: tuple[int, ...]) -> None:
    pieces = [rig.arena.writable(size) for size in sizes]
    assert submit(rig, [rig.arena.readable(header(IN, 1)), *pieces]) == 513
    assert b"".join(map(rig.arena.content, pieces)) == CONTENT[512:1024] + b"\0"


def test_as_many_segments_as_promised(rig: Rig) -> None:
    pieces = [rig.arena.writable(512) for _ in range(SECTORS)] + [rig.arena.writable(1)]
    assert submit(rig, [rig.arena.readable(header(IN)), *pieces], indirect=True) == SECTORS * 512 + 1
    many = [rig.arena.readable(b"z" * 2) for _ in range(253)] + [rig.arena.readable(b"z" * 6)]
    status = rig.arena.writable(1)
    submit(rig, [rig.arena.readable(header(OUT)), *many, status], indirect=True)
    assert rig.arena.content(status) == b"\0"
    assert request(rig, IN, 0, room=512)[1] == b"z" * 512


@pytest.mark.parametrize("room", [1, 511, 513])
def test_reads_are_whole_sectors(rig: Rig, room: int) -> None:
    assert request(rig, IN, room=room) == (IOERR, b"\xcc" * room, 0)
    assert request(rig, OUT, data=b"z" * room)[0] == IOERR


def test_requests_without_data(rig: Rig) -> None:
    assert request(rig, IN) == (OK, b"", 1)
    assert request(rig, OUT) == (OK, b"", 1)


def test_no_room_for_the_status(rig: Rig) -> None:
    assert submit(rig, [rig.arena.readable(header(OUT) + bytes(512))]) == 0
    assert request(rig, IN, 0, room=512)[1] == CONTENT[:512], "and nothing was written to the disk"
    assert rig.tally.counts["vda.malformed"] == 1


@pytest.mark.parametrize("size", [1, 15])
def test_half_a_header(rig: Rig, size: int) -> None:
    status = rig.arena.writable(1)
    assert submit(rig, [rig.arena.readable(header(IN)[:size]), status]) == 1
    assert rig.arena.content(status)[0] == IOERR


def test_no_header(rig: Rig) -> None:
    target = rig.arena.writable(513)
    assert submit(rig, [target]) == 0
    assert rig.arena.content(target)[512] == IOERR


def test_a_batch_is_done_in_order_with_one_interrupt(rig: Rig) -> None:
    queue = rig.driver.queues[0]
    heads = []
    for value in range(10):
        data, status = rig.arena.readable(bytes([value]) * 512), rig.arena.writable(1)
        heads.append(queue.add([rig.arena.readable(header(OUT, 9)), data, status]))
    rig.driver.kick(0)
    assert [head for head, _ in queue.collect()] == heads
    assert rig.irq.pulses == 1
    assert request(rig, IN, 9, room=512)[1] == b"\x09" * 512


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
    disk = RawDisk(str(image))
    rig = make_rig(BlkDevice("vda", disk))
    rig.driver.start()
    failing(monkeypatch, call, code)
    room, data = (512, b"") if kind == IN else (0, bytes(512) if kind == OUT else b"")
    status, _, written = request(rig, kind, 1, room=room, data=data)
    assert status == IOERR
    assert written == (0 if kind == IN else 1)
    assert len(rig.faults) == 1
    assert rig.faults[0].startswith(f"vda: {image}: ")
    monkeypatch.undo()
    assert request(rig, kind, 1, room=room, data=data)[0] == OK, "the VM lives, and the disk may recover"
    disk.close()


def test_an_image_that_shrinks(make_rig: MakeRig, image: Path) -> None:
    disk = RawDisk(str(image))
    rig = make_rig(BlkDevice("vda", disk))
    rig.driver.start()
    with image.open("r+b") as file:
        file.truncate(512)
    assert request(rig, IN, 1, room=512)[0] == IOERR
    assert "shrunk" in rig.faults[0]
    disk.close()


def test_a_disk_that_always_fails_does_not_flood_the_log(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BackendError("broken", where="disk.img")

    monkeypatch.setattr(DroppingDisk, "flush", fail)
    for _ in range(100):
        assert request(rig, FLUSH)[0] == IOERR
    assert len(rig.faults) < 10
