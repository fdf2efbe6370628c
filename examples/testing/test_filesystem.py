"""A file system's tools, on a disk that may be destroyed, under the kernel that is to mount it."""

from __future__ import annotations

import pytest

from vmm.testing import VM

DISK = "/dev/vdb"
#: The super block, of which there are copies.
DAMAGE = f"dd if=/dev/zero of={DISK} bs=1024 seek=1 count=1 conv=notrunc"


@pytest.fixture
def mounted(vm: VM) -> VM:
    """The VM with a file system of 12 MiB on the disk of 64."""
    vm.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", DISK, "12M"])
    vm.run(f"mount -t ext4 {DISK} /mnt && echo precious > /mnt/file")
    return vm


def test_it_grows_while_it_is_mounted(mounted: VM) -> None:
    def blocks() -> int:
        return int(mounted.run("stat -f -c %b /mnt").stdout)

    before = blocks()
    mounted.run(["resize2fs", DISK])
    assert blocks() > 1.5 * before
    assert mounted.run("cat /mnt/file").stdout == "precious\n"


def test_a_damaged_one_is_refused_and_repaired(mounted: VM) -> None:
    mounted.run(f"umount /mnt && {DAMAGE}")
    assert mounted.run(f"mount -t ext4 {DISK} /mnt", check=False).returncode
    repaired = mounted.run(["e2fsck", "-fy", DISK], check=False)
    assert repaired.returncode & 1, repaired.stdout
    assert mounted.run(f"mount -t ext4 {DISK} /mnt && cat /mnt/file").stdout == "precious\n"


def test_a_full_one_says_so_and_goes_on(mounted: VM) -> None:
    mounted.run("fallocate -l 8M /mnt/most")
    full = mounted.run("dd if=/dev/zero of=/mnt/rest bs=64k", check=False)
    assert "No space left on device" in full.stderr
    mounted.run("rm /mnt/rest && echo more > /mnt/other")
