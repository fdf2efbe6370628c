"""What tests see when something goes wrong."""

from __future__ import annotations

import subprocess

import pytest

from vmm.testing import CommandFailed, CommandTimeout, GuestHang, GuestPanic, VMError


def test_a_message_has_the_name_and_the_last_lines_of_the_console() -> None:
    error = GuestPanic("Kernel panic: oh", code=120, name="web", console=[f"line {number}" for number in range(100)])
    first, second, *lines = str(error).splitlines()
    assert (first, second) == ("VM web: Kernel panic: oh", "last console lines:")
    assert (len(lines), lines[-1]) == (20, "  line 99")
    assert len(error.console) == 100


def test_a_failed_command_is_also_what_subprocess_raises() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        raise CommandFailed(["ls", "x"], 2, "", "no x\n", name="web", console=[])
    assert (raised.value.returncode, raised.value.cmd, raised.value.stderr) == (2, ["ls", "x"], "no x\n")
    assert str(raised.value) == "VM web: ['ls', 'x'] ended with exit status 2\nits stderr:\n  no x"


def test_a_signal_is_told_as_one() -> None:
    assert "ended with signal 9" in str(CommandFailed("x", -9, b"", b"", name="web", console=[]))


def test_a_timeout_is_also_what_subprocess_raises() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        raise CommandTimeout("sleep 9", 1.5, name="web", console=["~ #"])
    assert "'sleep 9' was not done after 1.5 seconds" in str(raised.value)


def test_all_are_of_one_kind() -> None:
    assert issubclass(GuestHang, VMError)
    assert issubclass(GuestHang, TimeoutError)
