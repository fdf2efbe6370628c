"""Devices on PCI work, by messages and by INTx."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

import pytest

from tests.guest.linux import MIB, Image, LinuxGuest, make_disk

pytestmark = pytest.mark.guest

REQUEST = 64 << 10
REQUESTS = MIB // REQUEST


@pytest.fixture(scope="module", params=["messages", pytest.param("intx", marks=pytest.mark.slow)])
def guest(
    request: pytest.FixtureRequest, micro: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LinuxGuest, str]]:
    """A guest with a disk of its own to read and write, and how it is interrupted."""
    disk = make_disk(os.path.join(tmp_path_factory.mktemp("pci"), "disk.img"), 2 * MIB)
    machine = LinuxGuest(
        "-k", micro.kernel(), "-i", micro.initrd, "-c", "2", "--transport", "pci", "-d", disk,
        "-a", f"quiet root= {'pci=nomsi' if request.param == 'intx' else ''}",
    )  # fmt: skip
    try:
        machine.wait_for_prompt()
        yield machine, request.param
    finally:
        machine.close()


def interrupts(guest: LinuxGuest, device: str) -> dict[str, tuple[int, str]]:
    """Name -> (count, kind) of the interrupts of *device*."""
    found = {}
    for line in guest.run("cat /proc/interrupts").splitlines():
        match = re.fullmatch(rf" *\d+: +(\d+) +(\d+) +(.*?) +({device}\S*)", line)
        if match:
            found[match[4]] = (int(match[1]) + int(match[2]), match[3])
    return found


def test_the_devices_are_found(guest: tuple[LinuxGuest, str]) -> None:
    pci = guest[0].run("cat /sys/bus/pci/devices/*/uevent")
    assert re.findall(r"(?:DRIVER=(\S+)\n)?PCI_CLASS=(\w+)\nPCI_ID=(\S+)", pci) == [
        ("", "60000", "1B36:0008"),
        ("virtio-pci", "18000", "1AF4:1042"),
        ("virtio-pci", "FF0000", "1AF4:1044"),
    ]
    virtio = guest[0].run("cat /sys/bus/virtio/devices/*/uevent")
    assert re.findall(r"DRIVER=(\S+)", virtio) == ["virtio_blk", "virtio_rng"]


def test_a_disk_is_read_and_written(guest: tuple[LinuxGuest, str]) -> None:
    machine, how = guest
    before = sum(count for count, _ in interrupts(machine, "virtio0").values())
    copy = f"bs={REQUEST} count={REQUESTS} iflag=direct 2>/dev/null"
    there = machine.run(f"dd if=/dev/vda {copy} | sha256sum").split()[0]
    assert there == hashlib.sha256(hashlib.shake_128(bytes(4)).digest(MIB)).hexdigest()
    machine.run(f"dd if=/dev/vda of=/dev/vda seek={REQUESTS} oflag=direct {copy}")
    assert machine.run(f"dd if=/dev/vda skip={REQUESTS} {copy} | sha256sum").split()[0] == there
    after = interrupts(machine, "virtio0")
    if how == "messages":
        assert set(after) == {"virtio0-config", "virtio0-req.0"}
        assert all("PCI-MSI" in kind for _, kind in after.values())
    else:
        assert [kind for _, kind in after.values()] == ["IO-APIC  17-fasteoi"]
    assert sum(count for count, _ in after.values()) >= before + 4 * REQUESTS


def test_entropy_comes_from_the_host(guest: tuple[LinuxGuest, str]) -> None:
    read = "dd if=/dev/hwrng of=/tmp/random bs=64 count=1 2>/dev/null; xxd -p /tmp/random; rm /tmp/random"
    assert guest[0].run(read) != guest[0].run(read)


def test_a_device_that_is_rebound_works_again(guest: tuple[LinuxGuest, str]) -> None:
    """Unbinding resets it, turns its interrupts and bus mastering off; binding starts from there."""
    machine, _ = guest
    before = machine.run("dd if=/dev/vda bs=64k count=1 iflag=direct 2>/dev/null | sha256sum")
    machine.run("cd /sys/bus/pci/drivers/virtio-pci; echo 0000:00:01.0 > unbind; sleep 1; echo 0000:00:01.0 > bind")
    assert machine.run("dd if=/dev/vda bs=64k count=1 iflag=direct 2>/dev/null | sha256sum") == before


def test_power_off(guest: tuple[LinuxGuest, str]) -> None:
    assert guest[0].power_off() == 0
    assert "pyvmm: vda" not in guest[0].transcript, "nothing was at fault"
