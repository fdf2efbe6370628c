"""How a Linux guest ends: by itself, again, or badly."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Boot, Image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]


@pytest.fixture
def options(micro: Image) -> list[str]:
    """A root disk that none of these guests writes."""
    return ["--disk", f"{micro.file('root.img')},readonly"]


def test_reboot_boots_again_and_halt_is_noticed(boot: Boot, options: list[str]) -> None:
    guest = boot(*options)
    guest.run("mount -t tmpfs none /tmp; touch /tmp/first")
    guest.console.sendline("reboot")
    guest.console.expect("Restarting system")
    guest.wait_for_prompt()
    guest.run("! test -e /tmp/first")
    guest.console.sendline("halt -f")
    assert guest.wait_for_end() == 121
    assert "halted all its CPUs" in guest.transcript


def test_no_reboot(boot: Boot, options: list[str]) -> None:
    guest = boot("--no-reboot", *options)
    guest.console.sendline("reboot -f")
    assert guest.wait_for_end() == 122


def test_ctrl_alt_del_reboots(boot: Boot, options: list[str]) -> None:
    guest = boot("--no-reboot", *options)
    guest.console.sendcontrol("a")
    guest.console.send("d")
    assert guest.wait_for_end() == 122


def test_a_panic_ends_the_run(boot: Boot, options: list[str]) -> None:
    guest = boot(*options)
    guest.console.sendline("echo c >/proc/sysrq-trigger")
    assert guest.wait_for_end() == 120
    assert "Kernel panic - not syncing: sysrq triggered crash" in guest.transcript
    assert "pyvmm: guest panic: " in guest.transcript


def test_the_timeout(start: Boot, options: list[str]) -> None:
    guest = start("--timeout", "2", *options)
    assert guest.wait_for_end() == 124
