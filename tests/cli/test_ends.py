"""Every way a guest can end, and the exit code that tells it."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.cli.conftest import Pyvmm, finish
from tests.fakes.guest import (
    EMPTY_GATES,
    HALT,
    HANG,
    POWER_OFF,
    RESET_BY_ACPI,
    RESET_BY_KEYBOARD_CONTROLLER,
    UNDEFINED,
    leave,
    load,
    outb,
    say,
)
from vmm import layout

pytestmark = pytest.mark.kvm

PVPANIC_PANICKED, PVPANIC_CRASH_LOADED = 1, 2


def test_power_off_is_0_and_says_nothing(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("hello\n"), POWER_OFF))
    assert (run.code, run.output, run.messages) == (0, "hello\n", "")


@pytest.mark.parametrize(("status", "code"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF)])
def test_the_debug_exit_port_ends_with_the_status_the_guest_wrote(pyvmm: Pyvmm, status: int, code: int) -> None:
    run = pyvmm(*pyvmm.guest(leave(status)))
    assert (run.code, run.messages) == (code, "")


# Reboots.

RESETS = {
    "keyboard controller": RESET_BY_KEYBOARD_CONTROLLER,
    "ACPI reset register": RESET_BY_ACPI,
    "triple fault with an empty IDT": UNDEFINED,
}


@pytest.mark.parametrize("way", RESETS)
def test_a_reboot_is_122_where_none_is_wanted(pyvmm: Pyvmm, way: str) -> None:
    run = pyvmm(*pyvmm.guest(say("once\n"), RESETS[way]), "--no-reboot")
    assert (run.code, run.output) == (122, "once\n")
    assert run.messages.startswith("pyvmm: the guest rebooted")


@pytest.mark.parametrize("way", RESETS)
def test_a_reboot_starts_the_guest_again(pyvmm: Pyvmm, way: str) -> None:
    with pyvmm.start(*pyvmm.guest(say("from the start\n"), RESETS[way])) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(3)] == [b"from the start\n"] * 3
        process.terminate()
        assert finish(process).code == 123


# Panics.


def test_a_panic_told_by_pvpanic_is_120(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(outb(layout.PORT_PVPANIC, PVPANIC_PANICKED), HANG))
    assert (run.code, run.messages) == (120, "pyvmm: guest panic: the guest reported a panic by pvpanic\n")


def test_a_panic_that_a_crash_kernel_takes_care_of_is_no_end(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(outb(layout.PORT_PVPANIC, PVPANIC_CRASH_LOADED), leave(0)))
    assert run.code == 1


def test_a_panic_told_on_the_console_is_120_and_quoted(pyvmm: Pyvmm) -> None:
    panic = "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\n"
    run = pyvmm(*pyvmm.guest(say(panic), HANG))
    assert (run.code, run.messages) == (120, "pyvmm: guest panic: VFS: Unable to mount root fs\n")


def test_a_guest_that_panics_may_print_its_last_words(pyvmm: Pyvmm) -> None:
    panic = "Kernel panic - not syncing: Fatal exception\n"
    run = pyvmm(*pyvmm.guest(say(panic), say("last words\n"), HANG))
    assert (run.code, run.output) == (120, f"{panic}last words\n")


def test_a_reboot_out_of_a_panic_is_the_panic(pyvmm: Pyvmm) -> None:
    panic = "Kernel panic - not syncing: Fatal exception\n"
    run = pyvmm(*pyvmm.guest(say(panic), RESET_BY_KEYBOARD_CONTROLLER))
    assert (run.code, run.messages) == (120, "pyvmm: guest panic: Fatal exception\n")


# Crashes.


def test_a_triple_fault_is_121_with_registers_code_and_console(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("one\ntwo\n"), EMPTY_GATES, UNDEFINED))
    assert run.code == 121
    first, *rest = run.messages.splitlines()
    assert first == "pyvmm: triple fault"
    report = "\n".join(rest)
    assert "rip=" in report
    assert "efer=" in report
    assert "idt: base=0x200000 limit=0x7ff" in report
    assert ": ud2\n" in report
    assert rest[-3:] == ["last console lines:", "  one", "  two"]


def test_an_instruction_that_nobody_can_do_is_121_and_named(pyvmm: Pyvmm) -> None:
    x87_load_of_a_register = b"\xd9\x05" + layout.VIRTIO_MMIO_BASE.to_bytes(4, "little")
    run = pyvmm(*pyvmm.guest(x87_load_of_a_register, HANG))
    assert run.code == 121
    assert "instruction" in run.messages.splitlines()[0]
    assert "  -> 0x100000: fld dword ptr [0xd0000000]\n" in run.messages


def test_a_jump_to_nowhere_is_121_and_says_where(pyvmm: Pyvmm) -> None:
    jump = b"\xb8\x00\x00\x00\xe0\xff\xe0"  # mov eax, 0xe0000000; jmp eax
    run = pyvmm(*pyvmm.guest(EMPTY_GATES, jump))
    assert run.code == 121
    assert "e0000000" in run.messages


# Halts.


def test_a_dead_halt_is_noticed_and_121(pyvmm: Pyvmm) -> None:
    started = time.monotonic()
    run = pyvmm(*pyvmm.guest(say("System halted\n"), HALT))
    assert (run.code, run.output) == (121, "System halted\n")
    assert run.messages == "pyvmm: the guest halted all its CPUs with interrupts off\n"
    assert time.monotonic() - started < 5


def test_all_cpus_of_several_must_be_dead(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HALT), "--cpus", "2")
    assert run.code == 121


def test_a_guest_that_computes_is_not_halted(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--timeout", "4")
    assert run.code == 124


# From outside.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_123(pyvmm: Pyvmm, number: signal.Signals) -> None:
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG)) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        run = finish(process)
    assert (run.code, run.messages) == (123, "")


@pytest.mark.parametrize("delay_s", [0.06, 0.08, 0.1, 0.12, 0.15])
def test_a_signal_is_123_while_the_guest_reboots_in_a_circle(pyvmm: Pyvmm, delay_s: float) -> None:
    """Wherever it comes: while one machine is taken down, while the next is built, while it runs."""
    with pyvmm.start(*pyvmm.guest(say("up\n"), RESET_BY_ACPI), stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(delay_s)
        process.terminate()
        assert finish(process).code == 123


def test_the_timeout_is_124(pyvmm: Pyvmm) -> None:
    started = time.monotonic()
    run = pyvmm(*pyvmm.guest(HANG), "--timeout", "0.5")
    assert (run.code, run.messages) == (124, "pyvmm: the guest was still running after 0.5 seconds\n")
    assert 0.5 <= time.monotonic() - started < 3


def test_the_timeout_counts_over_reboots(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(RESET_BY_ACPI), "--timeout", "1")
    assert run.code == 124


def test_reading_where_nobody_answers_is_no_end(pyvmm: Pyvmm) -> None:
    assert pyvmm(*pyvmm.guest(load(0xE000_0000), leave(0))).code == 1
