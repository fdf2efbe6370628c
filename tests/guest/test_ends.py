"""How a Linux ends its machine, and pyvmm's exit code for it."""

from __future__ import annotations

import pytest

from tests.guest.booted import Booted
from tests.guest.conftest import Start
from tests.guest.linux import Image, LinuxGuest

pytestmark = pytest.mark.guest


@pytest.fixture
def guest(large: Booted, start: Start) -> LinuxGuest:
    """A guest with two CPUs that may not reboot."""
    machine = start(*large.arguments())
    machine.ask_for_prompt()
    return machine


def test_reboot_boots_again_and_poweroff_ends_with_0(micro: Image, start: Start) -> None:
    guest = start("-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", "-a", "quiet")
    guest.wait_for_prompt()
    guest.run("touch /this-boot")
    guest.console.sendline("reboot")
    guest.expect("reboot: Restarting system")
    guest.wait_for_prompt()
    guest.run("test -e /this-boot", fails=True)
    assert guest.power_off() == 0


def test_reboot_ends_with_122_where_none_is_wanted(guest: LinuxGuest) -> None:
    guest.console.sendline("reboot -f")
    assert guest.finish() == 122
    assert "pyvmm: the guest rebooted" in guest.transcript


def test_a_panic_ends_with_120_and_its_message(guest: LinuxGuest) -> None:
    guest.console.sendline("echo; echo c > /proc/sysrq-trigger")  # its message has a line of its own
    assert guest.finish() == 120
    assert "pyvmm: guest panic: " in guest.transcript
    assert "sysrq triggered crash" in guest.transcript.rpartition("pyvmm: guest panic: ")[2]


def test_a_halt_of_all_cpus_is_noticed_and_ends_with_121(guest: LinuxGuest) -> None:
    guest.console.sendline("halt -f")
    guest.expect("reboot: System halted")
    assert guest.finish(15) == 121
    assert "pyvmm: the guest halted all its CPUs with interrupts off" in guest.transcript


def test_a_boot_that_takes_too_long_ends_with_124(micro: Image, start: Start) -> None:
    guest = start("-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", "-a", "quiet", "--timeout", "3")
    assert guest.finish(15) == 124
