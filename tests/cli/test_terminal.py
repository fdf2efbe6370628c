"""On a terminal: the guest gets every key but pyvmm's own, and the terminal is put right whatever happens."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.cli.conftest import Pyvmm, TerminalRun
from tests.fakes.guest import (
    ECHO,
    EMPTY_GATES,
    HALT,
    HANG,
    POWER_OFF,
    RESET_BY_ACPI,
    UNDEFINED,
    inb,
    leave,
    outb,
    say,
)
from vmm import layout

pytestmark = pytest.mark.kvm

OnTerminal = Callable[..., TerminalRun]

UP = say("up\n")


def test_the_terminal_is_raw_while_the_guest_runs(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(UP, HANG))
    run.expect(b"up\r\n")
    assert run.is_raw
    run.process.terminate()
    assert run.finish() == 123
    assert run.is_as_before


ENDS: dict[str, tuple[bytes, tuple[str, ...], int]] = {
    "power off": (POWER_OFF, (), 0),
    "reboot": (RESET_BY_ACPI, ("--no-reboot",), 122),
    "panic": (outb(layout.PORT_PVPANIC, 1) + HANG, (), 120),
    "crash": (EMPTY_GATES + UNDEFINED, (), 121),
    "halt": (HALT, (), 121),
    "debug exit": (leave(3), (), 7),
    "timeout": (HANG, ("--timeout", "0.5"), 124),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_terminal_is_put_right_after(pyvmm: Pyvmm, on_terminal: OnTerminal, end: str) -> None:
    code, arguments, expected = ENDS[end]
    run = on_terminal(*pyvmm.guest(UP, code), *arguments)
    assert run.finish() == expected
    assert run.is_as_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_put_right_after_a_signal(
    pyvmm: Pyvmm, on_terminal: OnTerminal, number: signal.Signals
) -> None:
    run = on_terminal(*pyvmm.guest(UP, HANG))
    run.expect(b"up\r\n")
    run.process.send_signal(number)
    assert run.finish() in (123, -number)
    assert run.is_as_before


def test_the_terminal_is_put_right_when_the_machine_cannot_be_built(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(HANG), "--initrd", "missing")
    assert run.finish() == 2
    assert run.is_as_before


def test_keys_reach_the_guest_as_they_are(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(UP, ECHO))
    run.expect(b"up\r\n")
    run.type(b"ls\r\x03\x1a\x1c\x04\x7f")
    run.expect(b"ls\r\x03\x1a\x1c\x04\x7f")


def test_ctrl_a_x_ends_the_machine(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(UP, HANG))
    run.expect(b"up\r\n")
    run.type(b"\x01x")
    assert run.finish() == 123
    assert run.is_as_before


def test_ctrl_a_h_lists_the_keys(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(UP, ECHO))
    run.expect(b"up\r\n")
    run.type(b"\x01h")
    run.expect(b"Ctrl-A x       end the virtual machine\r\n")
    run.expect(b"Ctrl-A d       press Ctrl-Alt-Del in the guest\r\n")


def test_ctrl_a_a_is_ctrl_a_for_the_guest(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    run = on_terminal(*pyvmm.guest(UP, ECHO))
    run.expect(b"up\r\n")
    run.type(b"\x01a.\x01\x01.")
    run.expect(b"\x01.\x01.")


def test_ctrl_a_d_presses_ctrl_alt_del(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    poll = inb(layout.PORT_I8042 + 4) + b"\xa8\x01\x74\xf5"  # test al, 1; jz: until the output buffer is full
    first = poll + inb(layout.PORT_I8042)
    compare = b"\x3c\x1d\x75\xfe"  # cmp al, 0x1d (left Ctrl); jne: hang
    run = on_terminal(*pyvmm.guest(UP, first, compare, leave(4)))
    run.expect(b"up\r\n")
    run.type(b"\x01d")
    assert run.finish() == 9


def test_a_rebooted_guest_has_the_terminal_again(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    wait_for_a_key = inb(layout.PORT_COM1 + 5) + b"\xa8\x01\x74\xf5"
    run = on_terminal(*pyvmm.guest(UP, wait_for_a_key, RESET_BY_ACPI))
    for _ in range(3):
        run.expect(b"up\r\n")
        run.type(b"x")
    run.expect(b"up\r\n")
    assert run.is_raw
    run.type(b"\x01x")
    assert run.finish() == 123
    assert run.is_as_before


def test_a_hung_up_terminal_is_a_hangup(pyvmm: Pyvmm, on_terminal: OnTerminal) -> None:
    """The session's leader is told by SIGHUP; what it cannot print any more does not keep it."""
    run = on_terminal(*pyvmm.guest(UP, HANG))
    run.expect(b"up\r\n")
    started = time.monotonic()
    run.process.send_signal(signal.SIGHUP)
    assert run.process.wait(10) == 123
    assert time.monotonic() - started < 5
