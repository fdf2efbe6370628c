"""The virtio console in the serial port's place: a login shell on hvc0 that loses nothing, in either direction."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator

import pytest

from tests.guest.linux import Image, LinuxGuest
from tests.guest.test_console import lines, paste

pytestmark = pytest.mark.guest

MIB = 1 << 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 1 MiB of text."""
    path = os.path.join(tmp_path_factory.mktemp("text"), "text")
    with open(path, "wb") as file:
        file.write(lines(MIB))
    return path


@pytest.fixture(scope="module")
def guest(micro: Image, tmp_path_factory: pytest.TempPathFactory, text: str) -> Iterator[LinuxGuest]:
    """A guest on the virtio console; its disk vdb is *text*."""
    root = micro.copy_root(os.path.join(tmp_path_factory.mktemp("console"), "root.img"))
    disks = ("--disk", root, "--disk", f"{text},readonly")
    machine = LinuxGuest("--kernel", micro.kernel(), "--memory", "128M", "--console", "virtio", *disks)
    try:
        machine.wait_for_prompt()
        yield machine
    finally:
        machine.close()


def test_the_shell_logs_in_on_hvc0_and_has_job_control(guest: LinuxGuest) -> None:
    assert guest.run("tty") == "/dev/hvc0"
    guest.interrupt()
    guest.run("true")


def test_the_kernel_s_messages_are_all_there_once(guest: LinuxGuest) -> None:
    log = guest.run("dmesg").splitlines()
    assert "Linux version 6." in log[0]
    assert any(line.endswith("Run /sbin/init as init process") for line in log)
    guest.run("echo '<1>spoken on''ce' > /dev/kmsg")
    guest.run("sleep 1")
    assert guest.transcript.count("spoken once") == 1


def test_a_paste_of_16_kb_arrives_whole(guest: LinuxGuest) -> None:
    paste(guest, 16 << 10, 120)


@pytest.mark.parametrize("size", [64 << 10, pytest.param(MIB, marks=pytest.mark.slow)])
def test_a_long_cat_arrives_whole(guest: LinuxGuest, size: int) -> None:
    """Each of its lines is a request: 64 KiB go round the ring often enough."""
    before = len(guest.transcript)
    guest.console.sendline(f"echo be''gin; head -c {size} /dev/vdb; echo en''d")
    guest.console.expect(r"end\r+\n", timeout=300, searchwindowsize=100)
    printed = re.sub(r"\r+\n", "\n", guest.transcript[before:]).partition("begin\n")[2].removesuffix("end\n").encode()
    assert len(printed) == size
    assert hashlib.sha256(printed).digest() == hashlib.sha256(lines(MIB)[:size]).digest()


def test_the_guest_follows_the_terminal_s_size(guest: LinuxGuest) -> None:
    guest.console.setwinsize(40, 100)
    guest.run("sleep 1")
    assert guest.run("stty size") == "40 100"
