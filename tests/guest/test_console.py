"""The serial console loses nothing, in either direction."""

from __future__ import annotations

import hashlib

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest


def lines(size: int) -> bytes:
    """*size* bytes of text, in lines of 64, that differ."""
    return b"".join(hashlib.sha256(number.to_bytes(4, "big")).hexdigest()[:63].encode() + b"\n"
                    for number in range(size // 64))  # fmt: skip


def paste(guest: LinuxGuest, size: int, timeout_s: float) -> None:
    """Paste *size* bytes at once into a program that reads the terminal, and compare what arrived."""
    data = lines(size)
    guest.console.sendline("stty -echo; echo rea''dy; cat > /root/pasted; stty echo; echo pas''ted")
    guest.expect(r"ready\r")
    guest.type(data.decode())
    guest.type("\x04")
    guest.expect(r"pasted\r", timeout_s)
    assert guest.run("md5sum /root/pasted; rm /root/pasted").split()[0] == hashlib.md5(data).hexdigest()


def test_a_paste_of_16_kb_arrives_whole(guest: LinuxGuest) -> None:
    paste(guest, 16 << 10, 120)


@pytest.mark.slow
def test_a_paste_of_100_kb_arrives_whole(guest: LinuxGuest) -> None:
    paste(guest, 100 << 10, 600)


def test_long_output_is_complete(guest: LinuxGuest) -> None:
    """It is more than the driver's buffer of 4 KiB."""
    assert guest.run("seq 1 1000").split() == [str(number) for number in range(1, 1001)]


def test_dmesg_is_complete(guest: LinuxGuest) -> None:
    log = guest.run("dmesg").splitlines()
    assert "Linux version 6." in log[0]
    assert any(line.endswith("Run /sbin/init as init process") for line in log)
    assert len(log) == int(guest.run("dmesg > /root/log; wc -l < /root/log; rm /root/log"))


def test_ctrl_c_interrupts_a_program(guest: LinuxGuest) -> None:
    guest.interrupt()
    guest.run("true")
