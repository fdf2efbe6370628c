"""Properties of the block device against a disk that is a bytearray."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.disk import DroppingDisk
from tests.fakes.driver import MIB, Arena, Buffer, Rig
from vmm.virtio.blk import BlkDevice, RequestStatus, RequestType

SECTORS = 16
sectors = st.one_of(st.integers(0, SECTORS), st.sampled_from([(1 << 64) - 1, 1 << 55, 1 << 63]))
kinds = st.sampled_from([RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID, 99])
sizes = st.one_of(st.sampled_from([0, 512, 1024, 4096]), st.integers(0, 2048))
cuts = st.lists(st.integers(1, 4200), max_size=5)
requests = st.lists(st.tuples(kinds, sectors, sizes, cuts, st.booleans()), min_size=1, max_size=10)


class Model:
    """What the disk should hold, and what of it is safe."""

    def __init__(self) -> None:
        self.content = bytearray(SECTORS * 512)
        self.safe = bytes(self.content)

    def expect(self, kind: int, sector: int, size: int, data: bytes) -> tuple[int, bytes]:
        """The status of the request, and what it reads."""
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


def _read(rig: Rig, buffers: list[Buffer]) -> bytes:
    return b"".join(rig.arena.content(buffer) for buffer in buffers)


@settings(deadline=None)
@given(script=requests)
def test_it_is_a_disk_however_the_requests_are_cut(script: list[tuple[int, int, int, list[int], bool]]) -> None:
    """VIRTIO 1.2 §2.7.4.1: "The device MUST NOT make assumptions about the particular arrangement of descriptors."
    §5.2.6.2: "If the device is backed by persistent storage, the device MUST ensure that stable writes are committed to
    it, before reporting completion of the write […] or the flush".
    """
    model = Model()
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(SECTORS * 512)
        disk = DroppingDisk(image.name, serial="serial")
        rig = Rig(BlkDevice("vda", disk), memory_bytes=MIB)
        queue = rig.driver.start()[0]
        for kind, sector, size, cut, indirect in script:
            rig.arena = queue.arena = Arena(rig.memory, 0x2_0000, MIB)
            out = os.urandom(size) if kind == RequestType.OUT else b""
            request = struct.pack("<IIQ", kind, 0, sector) + out
            room = (size if kind in {RequestType.IN, RequestType.GET_ID} else 0) + 1
            targets = [rig.arena.writable(end - start) for start, end in _pieces(room, cut)]
            queue.add(
                [rig.arena.readable(request[start:end]) for start, end in _pieces(len(request), cut)] + targets,
                indirect=indirect,
            )
            rig.driver.kick(0)
            ((_, written),) = queue.collect()
            status, data = model.expect(kind, sector, size, out)
            got = _read(rig, targets)
            assert got[-1] == status
            assert got[: len(data)] == data
            assert got[len(data) : -1] == b"\xcc" * (room - 1 - len(data)), "bytes were written that should not be"
            assert written == len(data) + (len(data) == room - 1)
        assert rig.faults == []
        disk.cut()
        rig.close()
        disk.close()
        assert image.read() == model.safe
