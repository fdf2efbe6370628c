"""Devices on PCI work, by messages and by INTx."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.guest.booted import Booted, large_options
from tests.guest.linux import MIB, Image, LinuxGuest

pytestmark = pytest.mark.guest

REQUEST = 64 << 10
REQUESTS = MIB // REQUEST
VSOCK = "vmw_vsock_virtio_transport"
#: The disk to read and write.
DISK, SLOT, NUMBER = "/dev/vdb", "0000:00:02.0", "virtio1"


@pytest.fixture(scope="module", params=["messages", pytest.param("intx", marks=pytest.mark.slow)])
def guest(request: pytest.FixtureRequest, micro: Image, large: Booted) -> Iterator[tuple[LinuxGuest, str]]:
    """A guest with a disk of its own to read and write, and how it is interrupted."""
    if request.param == "messages":
        machine = large.go_on()
    else:
        machine = LinuxGuest(*large_options(micro, large.disk, "quiet pci=nomsi"))
        machine.wait_for_prompt()
    with closing(machine):
        yield machine, request.param


def interrupts(guest: LinuxGuest, device: str) -> dict[str, tuple[int, str]]:
    """Name -> (count, kind) of the interrupts of *device*."""
    found = {}
    for line in guest.run(f"grep {device} /proc/interrupts").splitlines():
        match = re.fullmatch(rf" *\d+: +(\d+) +(\d+) +(.*?) +({device}\S*)", line)
        if match:
            found[match[4]] = (int(match[1]) + int(match[2]), match[3])
    return found


def test_the_devices_are_found(guest: tuple[LinuxGuest, str]) -> None:
    pci = guest[0].run("cat /sys/bus/pci/devices/*/uevent")
    assert re.findall(r"(?:DRIVER=(\S+)\n)?PCI_CLASS=(\w+)\nPCI_ID=(\S+)", pci) == [
        ("", "60000", "1B36:0008"),
        ("virtio-pci", "18000", "1AF4:1042"),
        ("virtio-pci", "18000", "1AF4:1042"),
        ("virtio-pci", "20000", "1AF4:1041"),
        ("virtio-pci", "FF0000", "1AF4:1044"),
        ("virtio-pci", "FF0000", "1AF4:1053"),
    ]
    virtio = guest[0].run("cat /sys/bus/virtio/devices/*/uevent")
    assert re.findall(r"DRIVER=(\S+)", virtio) == [*2 * ["virtio_blk"], "virtio_net", "virtio_rng", VSOCK]


def test_a_disk_is_read_and_written(guest: tuple[LinuxGuest, str]) -> None:
    machine, how = guest
    before = sum(count for count, _ in interrupts(machine, NUMBER).values())
    copy = f"bs={REQUEST} count={REQUESTS} iflag=direct 2>/dev/null"
    there = machine.run(f"dd if={DISK} {copy} | sha256sum").split()[0]
    assert there == hashlib.sha256(hashlib.shake_128(bytes(4)).digest(MIB)).hexdigest()
    machine.run(f"dd if={DISK} of={DISK} seek={REQUESTS} oflag=direct {copy}")
    assert machine.run(f"dd if={DISK} skip={REQUESTS} {copy} | sha256sum").split()[0] == there
    after = interrupts(machine, NUMBER)
    if how == "messages":
        assert set(after) == {f"{NUMBER}-config", f"{NUMBER}-req.0"}
        assert all("PCI-MSI" in kind for _, kind in after.values())
    else:
        assert [kind for _, kind in after.values()] == ["IO-APIC  18-fasteoi"]
    assert sum(count for count, _ in after.values()) >= before + 4 * REQUESTS


def test_entropy_comes_from_the_host(guest: tuple[LinuxGuest, str]) -> None:
    read = "dd if=/dev/hwrng of=/tmp/random bs=64 count=1 2>/dev/null; xxd -p /tmp/random; rm /tmp/random"
    assert guest[0].run(read) != guest[0].run(read)


def test_a_device_that_is_rebound_works_again(guest: tuple[LinuxGuest, str]) -> None:
    """Unbinding resets it, turns its interrupts and bus mastering off; binding starts from there."""
    machine, _ = guest
    before = machine.run(f"dd if={DISK} bs=64k count=1 iflag=direct 2>/dev/null | sha256sum")
    machine.run(f"cd /sys/bus/pci/drivers/virtio-pci; echo {SLOT} > unbind; sleep 1; echo {SLOT} > bind; cd")
    assert machine.run(f"dd if={DISK} bs=64k count=1 iflag=direct 2>/dev/null | sha256sum") == before


def test_power_off(guest: tuple[LinuxGuest, str]) -> None:
    assert guest[0].power_off() == 0
    assert "pyvmm: vd" not in guest[0].transcript, "nothing was at fault"
