"""Properties of the block device against a disk that is a bytearray."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.blk import BlkRig, header
from tests.fakes.disk import DroppingDisk
from tests.fakes.driver import DESC, MIB, Arena, Buffer
from tests.fakes.native import missing
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import BlkFeature, RequestStatus, RequestType
from vmm.virtio.spec import Feature

SECTORS = 16
OPTIONAL = (RequestType.DISCARD, RequestType.WRITE_ZEROES)
sectors = st.one_of(st.integers(0, SECTORS), st.sampled_from([(1 << 64) - 1, 1 << 55, 1 << 63]))
kinds = st.sampled_from([RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID, *OPTIONAL, 99])
sizes = st.one_of(st.sampled_from([0, 512, 1024, 4096]), st.integers(0, 2048))
cuts = st.lists(st.integers(1, 4200), max_size=5)
requests = st.lists(st.tuples(kinds, sectors, sizes, cuts, st.booleans()), min_size=1, max_size=10)
ENGINES = ["python", *(pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=missing))
                       for name in ("native", "threads"))]  # fmt: skip


class Model:
    """What the disk should hold, and what of it is safe."""

    def __init__(self) -> None:
        self.content = bytearray(SECTORS * 512)
        self.safe = bytes(self.content)

    def expect(self, kind: int, sector: int, size: int, data: bytes) -> tuple[int, bytes]:
        """The status of the request, and what it reads. A segment's *size* is in *data*."""
        if kind in OPTIONAL:
            if not sector * 512 + size <= len(self.content) or size % 512:
                return RequestStatus.IOERR, b""
            self.content[sector * 512 : sector * 512 + size] = bytes(size)
            return RequestStatus.OK, b""
        inside = size % 512 == 0 and sector * 512 + size <= len(self.content)
        if kind == RequestType.IN:
            at = sector * 512
            return (RequestStatus.OK, bytes(self.content[at : at + size])) if inside else (RequestStatus.IOERR, b"")
        if kind == RequestType.OUT:
            if not inside:
                return RequestStatus.IOERR, b""
            self.content[sector * 512 : sector * 512 + size] = data
            return RequestStatus.OK, b""
        if kind == RequestType.FLUSH:
            self.safe = bytes(self.content)
            return RequestStatus.OK, b""
        if kind == RequestType.GET_ID:
            return RequestStatus.OK, b"serial".ljust(20, b"\0")[:size]
        return RequestStatus.UNSUPP, b""


def _pieces(total: int, cut: list[int]) -> list[tuple[int, int]]:
    edges = [0, *sorted({at for at in cut if at < total}), total]
    return [(start, end) for start, end in itertools.pairwise(edges) if start < end]


def _read(rig: BlkRig, buffers: list[Buffer]) -> bytes:
    return b"".join(rig.arena.content(buffer) for buffer in buffers)


@pytest.mark.parametrize("engine", ENGINES)
@settings(deadline=None)
@given(script=requests)
def test_it_is_a_disk_however_the_requests_are_cut(
    engine: str, script: list[tuple[int, int, int, list[int], bool]]
) -> None:
    """VIRTIO 1.2 §2.7.4.1: "The device MUST NOT make assumptions about the particular arrangement of descriptors."
    §5.2.6.2: "If the device is backed by persistent storage, the device MUST ensure that stable writes are committed to
    it, before reporting completion of the write […] or the flush".
    """
    model = Model()
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(SECTORS * 512)
        disk = (DroppingDisk if engine == "python" else RawDisk)(image.name, serial="serial")
        rig = BlkRig(engine, disk, memory_bytes=MIB)
        rig.driver.start()
        queue = rig.driver.queues[0]
        for kind, sector, size, cut, indirect in script:
            rig.arena = queue.arena = Arena(rig.memory, 0x2_0000, MIB)
            out = os.urandom(size) if kind == RequestType.OUT else b""
            if kind in OPTIONAL:
                size -= size % 512
                out = struct.pack("<QII", sector, size // 512, 0)
            request = header(kind, sector) + out
            room = (size if kind in {RequestType.IN, RequestType.GET_ID} else 0) + 1
            targets = [rig.arena.writable(end - start) for start, end in _pieces(room, cut)]
            written = rig.submit(
                [rig.arena.readable(request[start:end]) for start, end in _pieces(len(request), cut)] + targets,
                indirect=indirect,
            )
            status, data = model.expect(kind, sector, size, out)
            got = _read(rig, targets)
            assert got[-1] == status
            assert got[: len(data)] == data
            assert got[len(data) : -1] == b"\xcc" * (room - 1 - len(data)), "bytes were written that should not be"
            assert written == len(data) + (len(data) == room - 1)
        assert rig.faults == []
        if isinstance(disk, DroppingDisk):
            disk.cut()
        rig.close()
        disk.close()
        assert image.read() == (model.safe if engine == "python" else model.content)


addresses = st.one_of(st.integers(0x2_0000, 0x2_4000), st.sampled_from([0, MIB - 16, MIB, 1 << 32, (1 << 64) - 8]))
lengths = st.one_of(st.sampled_from([1, 8, 16, 512, 513, 1024, 0xFFFF_FFFF]), st.integers(0, 2000))
flags = st.sampled_from([0, 1, 1, 2, 3, 3, 4, 5, 0xFFFF])
descriptors = st.tuples(addresses, lengths, flags, st.integers(0, 9))
headers = st.lists(st.tuples(kinds, sectors, sectors, st.integers(0, 20), st.integers(0, 3)), min_size=8, max_size=8)
FEATURES = Feature.VERSION_1 | Feature.INDIRECT_DESC | BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES


class Script(NamedTuple):
    """What a hostile driver does."""

    table: list[tuple[int, int, int, int]]
    heads: list[int]
    requests: list[tuple[int, int, int, int, int]]
    features: int
    readonly: bool


@pytest.mark.skipif(bool(missing), reason=missing)
@settings(deadline=None)
@given(
    table=st.lists(descriptors, min_size=8, max_size=8),
    heads=st.lists(st.integers(0, 8), min_size=1, max_size=10),
    requests=headers,
    features=st.sampled_from([FEATURES, FEATURES | Feature.EVENT_IDX | BlkFeature.FLUSH, Feature.VERSION_1]),
    readonly=st.booleans(),
)
def test_both_engines_do_the_same_with_any_request(
    table: list[tuple[int, int, int, int]],
    heads: list[int],
    requests: list[tuple[int, int, int, int, int]],
    features: int,
    readonly: bool,
) -> None:
    """The Python engine is the reference: used ring, guest memory, disk, counters and faults are equal."""
    script = Script(table, heads, requests, features, readonly)
    seen = [_play(engine, script) for engine in ("python", "native", "threads")]
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def _play(engine: str, script: Script) -> list[object]:
    """What comes of *script*."""
    with tempfile.NamedTemporaryFile() as image:
        image.write(bytes(range(256)) * (SECTORS * 2))
        image.flush()
        disk = RawDisk(image.name, serial="serial", readonly=script.readonly)
        rig = BlkRig(engine, disk, memory_bytes=MIB)
        offered = rig.driver.offered()
        queue = rig.driver.start(script.features & offered, size=8)[0]
        for index, (kind, sector, segment_sector, count, bits) in enumerate(script.requests):
            data = header(kind, sector) + struct.pack("<QII", segment_sector, count, bits)
            rig.memory.write(0x2_0000 + 0x400 * index, data)
        rig.memory.write(queue.desc, b"".join(DESC.pack(*descriptor) for descriptor in script.table))
        for head in script.heads:  # one by one: requests of a batch may be done in any order
            queue.offer(head)
            rig.driver.kick(0)
            if not rig.collect():
                break
        used = rig.memory.read(queue.device + 2, 2 + 8 * 8)
        guest, status = rig.memory.read(0x2_0000, 0x8000), rig.driver.status
        counts = {name: count for name, count in rig.counted().items() if count}
        rig.close()
        disk.close()
        image.seek(0)
        return [used, guest, status, image.read(), counts, rig.faults]
