"""`--trace`, `--stats` and `--verbose`: what happened, in the names of the registers' own declarations."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Pyvmm
from tests.fakes.guest import POWER_OFF, inb, load, outb, say, store
from vmm import __version__, layout

pytestmark = pytest.mark.kvm

MMIO = layout.VIRTIO_MMIO_BASE
STATUS, QUEUE_NOTIFY = 0x70, 0x50


def test_pio_names_registers(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("A"), inb(layout.PORT_COM1 + 5), outb(0x300, 1), POWER_OFF), "--trace", "pio")
    assert run.code == 0
    lines = run.messages.splitlines()
    assert lines[:3] == [
        "pio write com1.RBR/THR/DLL <- 0x41",
        "pio read  com1.LSR -> 0x60",
        "pio write 0x300 size 1: nobody answers",
    ]
    assert lines[-1] == "pio write acpi-pm.PM1a_CNT <- 0x3400"


def test_mmio_names_registers(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(load(MMIO), load(0xE000_0000), POWER_OFF), "--trace", "mmio")
    assert run.messages.splitlines() == [
        "mmio read  rng.MagicValue -> 0x74726976",
        "mmio read 0xe0000000 size 4: nobody answers",
    ]


def test_exits_tell_what_kvm_said(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("A"), load(MMIO), POWER_OFF), "--trace", "exits")
    assert run.messages.splitlines()[:3] == [
        "vcpu0 PortWrite port=0x3f8 size=0x1 data=41",
        "vcpu0 MmioRead gpa=0xd0000000 size=0x4",
        "vcpu0 PortWrite port=0x604 size=0x2 data=00 34",
    ]


def test_virtio_tells_the_status_machine(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(store(MMIO + STATUS, 1), store(MMIO + STATUS, 3), POWER_OFF), "--trace", "virtio")
    assert run.messages.splitlines() == [
        "rng status ACKNOWLEDGE: nothing",
        "rng status ACKNOWLEDGE|DRIVER: nothing",
    ]


def test_several_kinds(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(load(MMIO), POWER_OFF), "--trace", "mmio,pio")
    assert run.messages.splitlines() == [
        "mmio read  rng.MagicValue -> 0x74726976",
        "pio write acpi-pm.PM1a_CNT <- 0x3400",
    ]


def test_stats_count_exits_by_register_and_what_nobody_answered(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("AB"), inb(0x300), load(MMIO), POWER_OFF), "--stats", "--engine", "python")
    assert run.code == 0
    assert run.messages.splitlines() == [
        "exits",
        "           2  out com1.RBR/THR/DLL",
        "           1  in 0x300 (nobody)",
        "           1  mmio read rng.MagicValue",
        "           1  out acpi-pm.PM1a_CNT",
        "devices",
        "           1  unclaimed",
    ]


def test_stats_tell_what_was_answered_without_python(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("AB"), POWER_OFF), "--stats", "--engine", "native")
    assert run.output == "AB"
    assert "           2  plain com1.RBR/THR/DLL" in run.messages


def test_stats_come_after_a_crash_too(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("AB"), b"\x0f\x0b"), "--stats", "--no-reboot", "--engine", "python")
    assert run.code == 122
    assert "           2  out com1.RBR/THR/DLL" in run.messages


def test_verbose_says_how_the_kernel_is_entered_and_with_what(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(POWER_OFF), "--verbose", "--append", "one two")
    assert run.code == 0
    first, second = run.messages.splitlines()
    assert first == "pyvmm: vmlinux (entered by PVH at 0x100000)"
    assert second.startswith("pyvmm: command line: ")
    assert second.endswith(" console=ttyS0 one two")


def test_software_kvm_is_told(pyvmm: Pyvmm) -> None:
    """Options that weaken the guest are said; on a host whose KVM is complete there is nothing to say."""
    told = pyvmm(*pyvmm.guest(POWER_OFF)).software_kvm
    assert told == "" or "mitigations=off" in told
    complete = "KVM kind          complete" in pyvmm("doctor").output
    assert complete == (told == "")


def test_the_version_is_the_packages(pyvmm: Pyvmm) -> None:
    assert pyvmm("--version").output.split() == ["pyvmm", __version__]
