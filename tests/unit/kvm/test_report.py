"""What a person gets to see of a crashed vCPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.vcpu import FakeVcpu
from vmm.kvm import abi
from vmm.kvm.report import crash_report
from vmm.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(1 << 20)
    made.store_u64(0x1000, 0x2003)  # PML4, then a PDPT and a directory with one page of 2 MiB
    made.store_u64(0x2000, 0x3003)
    made.store_u64(0x3000, 0x83)
    yield made
    made.close()


@pytest.fixture
def vcpu() -> FakeVcpu:
    made = FakeVcpu()
    made.sregs.cr3, made.sregs.cs.selector = 0x1000, 0x10
    made.regs[abi.RIP], made.regs[abi.RAX], made.regs[abi.R15] = 0x5000, 0x1122_3344_5566_7788, 0xF
    return made


def test_registers_and_instruction(vcpu: FakeVcpu, memory: GuestMemory) -> None:
    memory.write(0x5000, b"\xf3\x0f\xb8\xc1\x90")
    report = crash_report(vcpu.typed(), memory)
    assert report.startswith("vCPU 0:\n")
    assert "rax=1122334455667788" in report
    assert "r15=000000000000000f" in report
    assert "rip=0000000000005000" in report
    assert "cr3=0000000000001000" in report
    assert "cs: selector=0x10" in report
    assert "-> 0x5000: popcnt eax, ecx" in report
    assert "   0x5004: nop" in report


def test_the_bytes_that_kvm_gave_come_first(vcpu: FakeVcpu, memory: GuestMemory) -> None:
    memory.write(0x5000, b"\x90")
    assert "-> 0x5000: pxor xmm0, xmm0" in crash_report(vcpu.typed(), memory, b"\x66\x0f\xef\xc0")


def test_what_is_no_instruction(vcpu: FakeVcpu, memory: GuestMemory) -> None:
    report = crash_report(vcpu.typed(), memory, b"\x06\xff\xff")
    assert "code: 06 ff ff" in report
    assert "-> 0x5000: not an instruction" in report


@pytest.mark.parametrize("rip", [0x20_0000, 1 << 47, (1 << 64) - 1, 0xFFFF_F000])
def test_code_that_cannot_be_read(vcpu: FakeVcpu, memory: GuestMemory, rip: int) -> None:
    vcpu.regs[abi.RIP] = rip
    assert f"no code can be read at {rip:#x}" in crash_report(vcpu.typed(), memory)


def test_real_mode(vcpu: FakeVcpu, memory: GuestMemory) -> None:
    vcpu.sregs.cr0, vcpu.sregs.cs.l, vcpu.sregs.cs.base = 0x10, 0, 0x4000
    vcpu.regs[abi.RIP] = 0x100
    memory.write(0x4100, b"\xb8\x34\x12")
    assert "mov ax, 0x1234" in crash_report(vcpu.typed(), memory)


def test_code_at_the_end_of_memory(vcpu: FakeVcpu, memory: GuestMemory) -> None:
    """An instruction in the last bytes before a page that is not there is shown all the same."""
    vcpu.regs[abi.RIP] = (1 << 20) - 1
    memory.write((1 << 20) - 1, b"\xf4")
    assert "hlt" in crash_report(vcpu.typed(), memory)
