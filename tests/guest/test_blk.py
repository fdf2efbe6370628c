"""Block traffic arrives as it was sent: buffered and O_DIRECT, read and written, compared by checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.guest.booted import DISK_SIZE, PROBE, Booted
from tests.guest.linux import MIB, LinuxGuest, make_disk, sha256

pytestmark = pytest.mark.guest

TRANSFER_S = 600


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A full disk and an empty one."""
    directory = tmp_path_factory.mktemp("disks")
    source, target = make_disk(os.path.join(directory, "source.img"), DISK_SIZE), os.path.join(directory, "target.img")
    with open(target, "wb") as file:
        file.truncate(DISK_SIZE)
    yield source, target
    os.unlink(source)
    os.unlink(target)


@pytest.fixture(scope="module")
def guest(small: Booted, disks: tuple[str, str]) -> Iterator[LinuxGuest]:
    """A guest with the full disk, read-only, as vda, and the empty one as vdb."""
    source, target = disks
    with closing(small.go_on("--disk", f"{source},readonly", "--disk", f"{target},serial=scratch")) as machine:
        machine.run(PROBE)
        yield machine


def test_size_and_attributes(guest: LinuxGuest) -> None:
    assert guest.run("cat /sys/block/vda/size") == str(DISK_SIZE // 512)
    assert guest.run("cat /sys/block/vda/ro /sys/block/vdb/ro") == "1\n0"
    assert guest.run("cat /sys/block/vdb/serial") == "scratch"
    assert guest.run("cat /sys/block/vdb/queue/write_cache") == "write back"


def test_a_read_only_disk_refuses_writes(guest: LinuxGuest, disks: tuple[str, str]) -> None:
    before = sha256(disks[0], MIB)
    guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1", fails=True)
    assert sha256(disks[0], MIB) == before


@pytest.mark.parametrize("count", [8, pytest.param(256, marks=pytest.mark.slow)])
def test_mib_past_the_page_cache(guest: LinuxGuest, disks: tuple[str, str], count: int) -> None:
    guest.run(f"dd if=/dev/vda of=/dev/vdb bs=1M count={count} iflag=direct oflag=direct", TRANSFER_S)
    assert sha256(disks[1], count * MIB) == sha256(disks[0], count * MIB)


@pytest.mark.parametrize("count", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_mib_through_the_page_cache(guest: LinuxGuest, disks: tuple[str, str], count: int) -> None:
    """Where ring 0 is interpreted each page costs milliseconds: 64 MiB take three minutes."""
    guest.run(f"dd if=/dev/zero of=/dev/vdb bs=1M count={count} oflag=direct", TRANSFER_S)
    guest.run(f"dd if=/dev/vda of=/dev/vdb bs=1M count={count} conv=fsync", TRANSFER_S)
    assert sha256(disks[1], count * MIB) == sha256(disks[0], count * MIB)


def test_the_guest_reads_what_the_host_has_written(guest: LinuxGuest, disks: tuple[str, str]) -> None:
    read = guest.run("dd if=/dev/vda bs=1M count=4 skip=100 iflag=direct 2>/dev/null | sha256sum", TRANSFER_S)
    with open(disks[0], "rb") as file:
        file.seek(100 * MIB)
        assert read.split()[0] == hashlib.sha256(file.read(4 * MIB)).hexdigest()
