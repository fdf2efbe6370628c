"""virtio-blk with the root file system and bulk data, each byte accounted for on both sides."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.guest.conftest import Guest, Image, read_from_image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

MIB = 1 << 20
BULK_LIMIT_S = 400


@dataclass
class Disks:
    """A guest with its root disk, a read-only disk of 256 MiB whose bytes repeat nowhere, and an empty one."""

    guest: Guest
    root: str
    source: str
    target: str


@pytest.fixture(scope="module")
def disks(micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    directory = str(tmp_path_factory.mktemp("blk"))
    root = micro.copy_root(directory)
    source, target = os.path.join(directory, "source.img"), os.path.join(directory, "target.img")
    with open(source, "wb") as file:
        file.writelines(hashlib.shake_128(block.to_bytes(2, "little")).digest(MIB) for block in range(256))
    with open(target, "wb") as file:
        file.truncate(256 * MIB)
    guest = Guest([
        "--kernel", micro.file("vmlinux"), "--append", "quiet", "--disk", root,
        "--disk", f"{source},readonly,serial=read-only-1", "--disk", target,
    ])  # fmt: skip
    guest.wait_for_prompt()
    yield Disks(guest, root, source, target)
    guest.close()


def sha256(path: str, size: int) -> str:
    """The SHA-256 of the first *size* bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for _ in range(size // MIB):
            digest.update(file.read(MIB))
    return digest.hexdigest()


def test_256_mib_direct(disks: Disks) -> None:
    disks.guest.run("dd if=/dev/vdb of=/dev/vdc bs=1M iflag=direct oflag=direct", BULK_LIMIT_S)
    assert sha256(disks.target, 256 * MIB) == sha256(disks.source, 256 * MIB)


def test_64_mib_buffered(disks: Disks) -> None:
    disks.guest.run("dd if=/dev/zero of=/dev/vdc bs=1M count=64 oflag=direct", BULK_LIMIT_S)
    disks.guest.run("dd if=/dev/vdb of=/dev/vdc bs=1M count=64 && sync", BULK_LIMIT_S)
    assert sha256(disks.target, 64 * MIB) == sha256(disks.source, 64 * MIB)


def test_the_guest_computes_the_same_checksum(disks: Disks) -> None:
    output = disks.guest.run("dd if=/dev/vdb bs=1M count=16 iflag=direct 2>/dev/null | sha256sum", BULK_LIMIT_S)
    assert output.split()[0] == sha256(disks.source, 16 * MIB)


def test_a_readonly_disk_cannot_be_written(disks: Disks) -> None:
    before = sha256(disks.source, MIB)
    assert disks.guest.run("cat /sys/block/vdb/ro").strip() == "1"
    disks.guest.run("! dd if=/dev/zero of=/dev/vdb bs=4k count=1 2>/dev/null")
    assert sha256(disks.source, MIB) == before


def test_the_serial_number(disks: Disks) -> None:
    assert disks.guest.run("cat /sys/block/vdb/serial").strip() == "read-only-1"


def test_a_file_written_by_the_guest_is_in_the_image(disks: Disks) -> None:
    assert " / ext4 rw" in disks.guest.run("cat /proc/mounts")
    disks.guest.run("echo 'written in the guest' >/root/note; sync")
    assert disks.guest.power_off() == 0
    assert read_from_image(disks.root, "/root/note") == b"written in the guest\n"
    checked = subprocess.run(["e2fsck", "-fn", disks.root], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
