"""A live device is stopped, told, and goes on in another machine, where its driver finds everything as it left it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.blk import BlkRig
from tests.fakes.native import both_engines
from vmm.host.disk.raw import RawDisk
from vmm.snapshot import codec
from vmm.virtio.blk import RequestStatus, RequestType

SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(b"a" * SECTOR + b"b" * SECTOR + bytes(30 * SECTOR))
    return str(path)


def moved(old: BlkRig, new: BlkRig) -> None:
    """Let the device of *new* go on where that of *old* is, with the same memory and driver."""
    with old.transport.lock:
        old.transport.core.stand()
        state = codec.decode(codec.encode(old.transport.state()))
    new.memory.write(0, old.memory.read(0, old.memory_bytes))
    new.device.stand()
    new.transport.restore(state)
    vars(new.arena).update(vars(old.arena) | {"memory": new.memory})
    new.driver.queues = old.driver.queues
    for queue in new.driver.queues:
        queue.arena, queue.memory = new.arena, new.memory


@both_engines
def test_a_disk_goes_on(engine: str, image: str) -> None:
    disk, again = RawDisk(image, readonly=True), RawDisk(image, readonly=True)
    old, new = BlkRig(engine, disk), BlkRig(engine, again)
    try:
        old.driver.start()
        assert old.request(RequestType.IN, 0, room=SECTOR)[:2] == (RequestStatus.OK, b"a" * SECTOR)
        moved(old, new)
        before = new.transport.state()
        new.transport.core.go_on()
        new.transport.revive()
        assert new.request(RequestType.IN, 1, room=SECTOR)[:2] == (RequestStatus.OK, b"b" * SECTOR)
        assert before["core"]["active"] == [[1, 1]]
    finally:
        old.close()
        new.close()
        disk.close()
        again.close()


@both_engines
def test_a_disk_that_stood_goes_on_in_place(engine: str, image: str) -> None:
    disk = RawDisk(image, readonly=True)
    rig = BlkRig(engine, disk)
    try:
        rig.driver.start()
        for sector, content in enumerate((b"a", b"b")):
            with rig.transport.lock:
                rig.transport.core.stand()
                rig.transport.core.go_on()
            assert rig.request(RequestType.IN, sector, room=SECTOR)[1] == content * SECTOR
    finally:
        rig.close()
        disk.close()


@both_engines
def test_a_disk_of_another_size_is_refused(engine: str, image: str, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(64 * SECTOR))
    disk, again = RawDisk(image, readonly=True), RawDisk(str(other), readonly=True)
    old, new = BlkRig(engine, disk), BlkRig(engine, again)
    try:
        old.driver.start()
        with pytest.raises(ValueError, match="has 32768 bytes, and had 16384"):
            moved(old, new)
    finally:
        old.close()
        new.close()
        disk.close()
        again.close()
