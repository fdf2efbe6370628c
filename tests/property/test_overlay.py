"""An overlay is a disk, whoever serves it: it reads from below what it does not have, and writes nothing there.

VIRTIO 1.2 §5.2.6.2 as for all disks; the blocks of 4096 bytes are the overlay's own affair (vmm/host/disk/overlay.py).
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fakes.blk import BlkRig, header
from tests.fakes.driver import MIB, Arena
from tests.fakes.native import missing
from vmm.host.disk.overlay import OverlayDisk, open_ephemeral, open_overlay
from vmm.host.disk.overlay_file import BLOCK, create, owned
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestStatus, RequestType

ENGINES = ["python", *(pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=missing))
                       for name in ("native", "threads"))]  # fmt: skip
#: No whole number of blocks.
SECTORS = 8 * 12 + 3
SIZE = SECTORS * 512


class Step(NamedTuple):
    """A request, or that the machine ends and begins again (kind None)."""

    kind: int | None
    sector: int
    sectors: int
    unmap: bool = False
    pieces: int = 1


kinds = st.sampled_from([
    *(RequestType.IN, RequestType.OUT, RequestType.OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES),
    *(RequestType.FLUSH, None),
])  # fmt: skip
steps = st.builds(
    lambda kind, at, length, unmap, pieces: Step(kind, at, max(1, min(length, SECTORS - at)), unmap, pieces),
    kinds, st.integers(0, SECTORS - 1), st.integers(1, 40), st.booleans(), st.integers(1, 5),
)  # fmt: skip


class Files:
    """A base that is all letters, an overlay on it that has some of it, and the disk that is tested over both."""

    def __init__(self, directory: str, layers: int) -> None:
        self.base, self.path = f"{directory}/base.img", f"{directory}/base.img"
        content = bytes(65 + sector % 26 for sector in range(SECTORS) for _ in range(512))
        Path(self.base).write_bytes(content)
        self.model = bytearray(content)
        for layer in range(layers):
            below, self.path = self.path, f"{directory}/layer{layer}.cow"
            create(self.path, below, over_overlay=bool(layer))
            if layer < layers - 1:
                disk = open_overlay(self.path)
                data = bytearray(os.urandom(3 * 512))
                at = (5 + 20 * layer) * 512
                disk.pwritev([memoryview(data)], at)
                disk.close()
                self.model[at : at + len(data)] = data
        own = os.path.basename(self.path) if layers else ""
        self.below = {name: Path(directory, name).read_bytes() for name in os.listdir(directory) if name != own}


def play(engine: str, disk: OverlayDisk, script: list[Step], model: bytearray) -> None:
    """Do *script*, up to where the machine ends, and compare each answer with *model*."""
    rig = BlkRig(engine, disk, memory_bytes=MIB)
    rig.driver.start()
    queue = rig.driver.queues[0]
    try:
        for step in script:
            rig.arena = queue.arena = Arena(rig.memory, 0x2_0000, MIB)
            start, size = step.sector * 512, step.sectors * 512
            kind = RequestType.IN if step.kind is None else step.kind
            out = b""
            if kind == RequestType.OUT:
                out = os.urandom(size)
                model[start : start + size] = out
            elif kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
                out = struct.pack("<QII", step.sector, step.sectors, step.unmap and kind == RequestType.WRITE_ZEROES)
                model[start : start + size] = bytes(size)
            room = size if kind == RequestType.IN else 0
            cut = max(1, -(-max(room, len(out)) // step.pieces))
            sent = [rig.arena.readable(out[at : at + cut]) for at in range(0, len(out), cut)]
            targets = [rig.arena.writable(min(cut, room - at)) for at in range(0, room, cut)]
            status = rig.arena.writable(1)
            rig.submit([rig.arena.readable(header(kind, step.sector)), *sent, *targets, status], indirect=True)
            assert rig.arena.content(status)[0] == RequestStatus.OK
            got = b"".join(rig.arena.content(target) for target in targets)
            assert got == (model[start : start + size] if room else b"")
    finally:
        rig.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layers", [1, 3])
@settings(deadline=None, max_examples=60)
@given(script=st.lists(steps, min_size=1, max_size=14))
@example([Step(RequestType.OUT, 1, 1), Step(None, 0, 1), Step(RequestType.IN, 0, 40, pieces=5)])
@example([Step(RequestType.DISCARD, 3, 30), Step(RequestType.IN, 0, 40)])
def test_it_is_a_disk(engine: str, layers: int, script: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = Files(directory, layers)
        while script:
            end = next((index for index, step in enumerate(script) if step.kind is None), len(script))
            disk = open_overlay(files.path)
            try:
                play(engine, disk, [*script[:end], Step(None, 0, SECTORS, pieces=3)], files.model)
            finally:
                disk.close()
            script = script[end + 1 :]
        for name, content in files.below.items():
            assert Path(directory, name).read_bytes() == content, "what lies below was written"


@pytest.mark.parametrize("engine", ENGINES)
@settings(deadline=None, max_examples=30)
@given(script=st.lists(steps.filter(lambda step: step.kind is not None), min_size=1, max_size=14))
def test_one_that_is_thrown_away_is_one_too(engine: str, script: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        files = Files(directory, 0)
        disk = open_ephemeral(RawDisk(files.base, readonly=True), directory)
        try:
            play(engine, disk, [*script, Step(None, 0, SECTORS)], files.model)
            disk.save(f"{directory}/kept.cow")
        finally:
            disk.close()
        assert set(os.listdir(directory)) == {"base.img", "kept.cow"}
        assert Path(files.base).read_bytes() == files.below["base.img"], "the base was written"
        kept = open_overlay(f"{directory}/kept.cow")
        content = bytearray(SIZE)
        kept.preadv([memoryview(content)], 0)
        kept.close()
        assert content == files.model


@settings(deadline=None)
@given(blocks=st.sets(st.integers(0, 100)), sectors=st.integers(1, 8 * 101))
def test_the_runs_of_a_map(blocks: set[int], sectors: int) -> None:
    own = mmap.mmap(-1, BLOCK)
    for block in blocks:
        own[block // 8] |= 1 << block % 8
    size = sectors * 512
    runs = list(owned(own, size))
    assert all(start < end for start, end in runs)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(runs))
    covered = {at // BLOCK for start, end in runs for at in range(start, end, BLOCK)}
    assert covered == {block for block in blocks if block * BLOCK < size}
    assert not runs or runs[-1][1] <= size
