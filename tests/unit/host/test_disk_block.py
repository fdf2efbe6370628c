"""Block devices as disks: what they give back, and zeroes, whatever their sectors."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import required
from tests.fakes.blk import BlkRig
from tests.fakes.native import both_engines
from vmm.errors import BackendError
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import BlkFeature, RequestStatus, RequestType

pytestmark = pytest.mark.root

SIZE = 1 << 20
MakeDevice = Callable[[int], str]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[MakeDevice]:
    """Makes a loop device with sectors of so many bytes on a file full of 0xaa."""
    image, devices = tmp_path / "backing.img", []
    image.write_bytes(b"\xaa" * SIZE)

    def make(sector: int) -> str:
        command = ["losetup", "--find", "--show", "--sector-size", str(sector), str(image)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            (pytest.fail if required() else pytest.skip)(f"no loop devices: {done.stderr.strip()}")
        devices.append(done.stdout.strip())
        return devices[-1]

    yield make
    for device in devices:
        subprocess.run(["losetup", "--detach", device], check=True)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return sector.to_bytes(8, "little") + sectors.to_bytes(4, "little") + flags.to_bytes(4, "little")


@contextmanager
def rig_with(disk: RawDisk, engine: str) -> Iterator[BlkRig]:
    rig = BlkRig(engine, disk)
    try:
        rig.driver.start()
        yield rig
    finally:
        rig.close()
        disk.close()


@both_engines
def test_what_is_discarded_is_zeroes(loop_device: MakeDevice, engine: str) -> None:
    with rig_with(RawDisk(loop_device(512)), engine) as rig:
        assert rig.driver.offered() & BlkFeature.DISCARD
        assert rig.request(RequestType.DISCARD, data=segment(1, 2))[0] == RequestStatus.OK
        assert rig.request(RequestType.IN, 0, room=2048)[1] == b"\xaa" * 512 + bytes(1024) + b"\xaa" * 512


@both_engines
@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("unmap", [0, 1])
def test_sectors_larger_than_ours(loop_device: MakeDevice, engine: str, cache: str, unmap: int) -> None:
    with rig_with(RawDisk(loop_device(4096), cache=cache), engine) as rig:
        assert not rig.driver.offered() & BlkFeature.DISCARD, "a part of one cannot be given back"
        assert rig.request(RequestType.WRITE_ZEROES, data=segment(1, 2, unmap))[0] == RequestStatus.OK
        assert rig.request(RequestType.IN, 0, room=2048)[1] == b"\xaa" * 512 + bytes(1024) + b"\xaa" * 512


def test_nobody_else_may_have_it(loop_device: MakeDevice) -> None:
    disk = RawDisk(loop_device(512))
    with pytest.raises(BackendError, match="in use"):
        RawDisk(disk.path)
    disk.close()
