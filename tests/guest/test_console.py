"""The serial console under load, and the small devices beside it."""

from __future__ import annotations

import hashlib
import time

import pytest

from tests.guest.conftest import Guest

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

#: The guest echoes what it reads, an interrupt a few bytes: on interpreted ring 0 some hundred bytes a second.
PASTE_LIMIT_S = 600


@pytest.fixture(scope="module")
def guest(shared_guest: Guest) -> Guest:
    return shared_guest


def paste(guest: Guest, size: int) -> None:
    """Paste *size* bytes of text into a program that reads the terminal, at once, and compare what arrived."""
    text = "".join(hashlib.sha256(bytes((n >> 8, n & 255))).hexdigest()[:63] + "\n" for n in range(size // 64))
    guest.console.sendline("stty -echo; echo rea''dy; cat >/root/x; stty echo; md5sum /root/x | sed s/^/sum''=/")
    guest.console.expect(r"ready\r")
    guest.console.send(text)
    guest.console.sendcontrol("d")
    guest.console.expect(r"sum=([0-9a-f]{32})", timeout=PASTE_LIMIT_S)
    found = guest.console.match
    assert not isinstance(found, str | type | None)
    assert found.group(1) == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def test_a_paste_of_16_kb(guest: Guest) -> None:
    paste(guest, 16 << 10)


@pytest.mark.slow
def test_a_paste_of_100_kb(guest: Guest) -> None:
    paste(guest, 100 << 10)


def test_dmesg_is_complete(guest: Guest) -> None:
    log = guest.run("dmesg")
    assert "Linux version" in log
    assert "Run /sbin/init as init process" in log


def test_the_shell_has_job_control(guest: Guest) -> None:
    guest.console.sendline("sleep 1000")
    time.sleep(1)
    guest.console.sendcontrol("c")
    guest.run("true")


def test_the_clock_is_right(guest: Guest) -> None:
    for command in ("date +%s", "date -D '%a %b %d %T %Y' -d \"$(hwclock -u | cut -c1-24)\" +%s"):
        assert abs(int(guest.run(command)) - time.time()) < 5


def test_the_entropy_device(guest: Guest) -> None:
    assert "virtio_rng" in guest.run("cat /sys/class/misc/hw_random/rng_current")
    assert guest.run("dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c").strip() == "64"


def test_devices_come_from_acpi_alone(guest: Guest) -> None:
    assert "virtio_mmio.device=" not in guest.run("cat /proc/cmdline")
    assert guest.run("ls /sys/bus/acpi/devices | grep -c LNRO0005").strip() == "2"


def test_power_off(guest: Guest) -> None:
    assert guest.power_off() == 0
