"""Block traffic arrives as it was sent: buffered and O_DIRECT, read and written, compared by checksum."""

from __future__ import annotations

import pytest

from tests.guest.conftest import LARGE_BYTES, MIB, SCRATCH_BYTES
from tests.guest.linux import LinuxGuest, sha256

pytestmark = pytest.mark.guest


def test_sizes_and_attributes(guest: LinuxGuest) -> None:
    assert guest.run("cat /sys/block/vdb/size") == str(LARGE_BYTES // 512)
    assert guest.run("cat /sys/block/vdb/ro /sys/block/vdc/ro") == "1\n0"
    assert guest.run("cat /sys/block/vdc/serial") == "scratch"
    assert guest.run("cat /sys/block/vdc/queue/write_cache") == "write back"


def test_a_read_only_disk_refuses_writes(guest: LinuxGuest) -> None:
    before = guest.run("dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | md5sum")
    guest.run("dd if=/dev/zero of=/dev/vdb bs=512 count=1 oflag=direct", fails=True)
    assert guest.run("dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | md5sum") == before


def test_64_mib_through_the_page_cache(guest: LinuxGuest, disks: dict[str, str]) -> None:
    count = SCRATCH_BYTES // MIB
    guest.run(f"dd if=/dev/vdb of=/dev/vdc bs=1M count={count}", 300)
    guest.run("sync", 300)
    assert sha256(disks["vdc"], SCRATCH_BYTES) == sha256(disks["vdb"], SCRATCH_BYTES)
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    read = guest.run(f"dd if=/dev/vdc bs=1M count={count} of=/tmp/copy && sha256sum /tmp/copy; rm /tmp/copy", 300)
    assert sha256(disks["vdb"], SCRATCH_BYTES) in read


def test_256_mib_past_the_page_cache(guest: LinuxGuest, disks: dict[str, str]) -> None:
    guest.run("dd if=/dev/vdb of=/dev/vdc bs=1M iflag=direct oflag=direct", 300)
    guest.run("sync", 300)
    assert sha256(disks["vdc"]) == sha256(disks["vdb"])
