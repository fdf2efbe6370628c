"""How a Linux ends its machine, and pyvmm's exit code for it."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import Image, LinuxGuest

pytestmark = pytest.mark.guest


@pytest.fixture
def booting(micro: Image, start: Start, request: pytest.FixtureRequest) -> LinuxGuest:
    """A guest from its initrd, not yet at its prompt; the test's parameters are options."""
    options = getattr(request, "param", ())
    return start("-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", "-a", "quiet", *options)


def test_reboot_boots_again_and_poweroff_ends_with_0(booting: LinuxGuest) -> None:
    booting.wait_for_prompt()
    booting.run("touch /this-boot")
    booting.console.sendline("reboot")
    booting.expect("reboot: Restarting system")
    booting.wait_for_prompt()
    booting.run("test -e /this-boot", fails=True)
    assert booting.power_off() == 0


@pytest.mark.parametrize("booting", [("--no-reboot",)], indirect=True)
def test_reboot_ends_with_122_where_none_is_wanted(booting: LinuxGuest) -> None:
    booting.wait_for_prompt()
    booting.console.sendline("reboot -f")
    assert booting.finish() == 122
    assert "pyvmm: the guest rebooted" in booting.transcript


def test_a_panic_ends_with_120_and_its_message(booting: LinuxGuest) -> None:
    booting.wait_for_prompt()
    booting.console.sendline("echo c > /proc/sysrq-trigger")
    assert booting.finish() == 120
    assert "pyvmm: guest panic: " in booting.transcript
    assert "sysrq triggered crash" in booting.transcript.rpartition("pyvmm: guest panic: ")[2]


@pytest.mark.parametrize("booting", [("--cpus", "2")], indirect=True)
def test_a_halt_of_all_cpus_is_noticed_and_ends_with_121(booting: LinuxGuest) -> None:
    booting.wait_for_prompt()
    booting.console.sendline("halt -f")
    booting.expect("reboot: System halted")
    assert booting.finish(15) == 121
    assert "pyvmm: the guest halted all its CPUs with interrupts off" in booting.transcript


@pytest.mark.parametrize("booting", [("--timeout", "3")], indirect=True)
def test_a_boot_that_takes_too_long_ends_with_124(booting: LinuxGuest) -> None:
    assert booting.finish(15) == 124
