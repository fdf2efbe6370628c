"""The assist of instructions, through KVM: on software KVM it works, on a complete one it has nothing to do."""

from __future__ import annotations

import struct

import pytest

from tests.kvm.assisted import Assisted
from tests.kvm.code import frame, mov, registers, start, wrmsr
from vmm.kvm import abi, msrs
from vmm.kvm.assist import probe
from vmm.kvm.assist.instructions import ASSISTS
from vmm.kvm.exits import EmulationFailure, PortWrite, Shutdown, TripleFault, Unassisted
from vmm.kvm.scratch import (
    CODE,
    EXCEPTION_PORT,
    IDT,
    KERNEL_CS,
    REPORT,
    REPORT_PORT,
    STACK_TOP,
    STAR,
    TABLES,
    USER,
    USER_CS,
    USER_SS,
    ScratchGuest,
    gate,
)

pytestmark = pytest.mark.kvm

AC = 1 << 18
IF, CF, DF = 1 << 9, 1, 1 << 10
TSC_AUX = 0xC000_0103


@pytest.fixture
def assisted(guest: ScratchGuest) -> Assisted:
    return Assisted(guest)


def reported(event: object) -> int:
    """The port of the guest's report."""
    assert isinstance(event, PortWrite), event
    return event.port


def test_the_probe_tries_what_the_assist_knows() -> None:
    assert set(probe.SAMPLES) == {row.name for rows in ASSISTS.values() for row in rows}


@pytest.mark.parametrize("name", sorted(set(probe.SAMPLES) - {"int3", "int", "sysret"}))
def test_every_instruction_gets_past_kvm(assisted: Assisted, name: str) -> None:
    guest = assisted.guest
    guest.memory.write(USER, struct.pack("<I", 0x1F80))
    guest.vcpu.regs[abi.RAX] = USER
    start(guest, probe.SAMPLES[name] + REPORT)
    undefined = EXCEPTION_PORT + 6  # a processor without it, or a guest that has not enabled it
    assert reported(assisted.run()) in (REPORT_PORT, undefined)
    assert set(assisted.tally.counts) <= {name, "exception 6"}


def test_an_instruction_across_two_pages(assisted: Assisted) -> None:
    guest = assisted.guest
    at = CODE + 0x1000 - 3
    guest.memory.write(at, b"\xf3\x0f\xb8\x8b" + struct.pack("<i", 8) + REPORT)  # popcnt ecx, [rbx + 8]
    guest.memory.write(USER + 8, b"\xff\x01\x00\x00")
    guest.start(at)
    guest.vcpu.regs[abi.RBX] = USER
    assert reported(assisted.run()) == REPORT_PORT
    assert registers(guest)[abi.RCX] == 9


@pytest.mark.parametrize(("code", "vector"), [(b"\xcc", 3), (b"\xcd\x03", 3), (b"\xcd\x85", 0x85), (b"\xcd\x0d", 13)])
def test_a_software_interrupt_goes_through_the_guests_idt(assisted: Assisted, code: bytes, vector: int) -> None:
    """Intel SDM 3A §6.12: a trap: the saved RIP is that of the next instruction. There is no error code."""
    guest = assisted.guest
    handler = CODE + 0x800
    guest.memory.write(handler, REPORT)
    guest.memory.write(IDT + 16 * vector, gate(handler))
    start(guest, code, flags=CF)
    guest.vcpu.sregs.idt.limit = 0xFFF
    assert reported(assisted.run()) == REPORT_PORT
    saved = struct.unpack("<5Q", guest.memory.read(registers(guest)[abi.RSP], 40))
    assert saved[:2] == (CODE + len(code), KERNEL_CS)
    assert saved[2] & 0xFFFF == CF | 2
    assert saved[3] == STACK_TOP


def test_int3_returns_by_iret(assisted: Assisted) -> None:
    guest = assisted.guest
    guest.memory.write(CODE + 0x800, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest.memory.write(IDT + 16 * 3, gate(CODE + 0x800))
    start(guest, mov(3, 0) + b"\xcc" * 3 + REPORT)
    assert reported(assisted.run()) == REPORT_PORT
    assert registers(guest)[abi.RBX] == 3


def test_an_interrupt_without_an_idt_is_a_triple_fault(assisted: Assisted) -> None:
    """`lidt` with limit 0 and `int3`: Linux's `reboot=t`."""
    guest = assisted.guest
    guest.memory.write(USER, bytes(10))
    start(guest, mov(3, USER) + b"\x0f\x01\x1b\xcc")  # lidt [rbx]; int3
    try:
        event = assisted.run()
    except TripleFault:
        assert guest.vcpu.sregs.idt.limit == 0
    else:
        assert isinstance(event, Shutdown)


@pytest.mark.parametrize(("code", "before", "after"), [(b"\x0f\x01\xca", AC, 0), (b"\x0f\x01\xcb", 0, AC)])
def test_clac_and_stac(assisted: Assisted, code: bytes, before: int, after: int) -> None:
    start(assisted.guest, code + REPORT, flags=before | CF)
    assert reported(assisted.run()) == REPORT_PORT
    assert registers(assisted.guest)[abi.RFLAGS] & (AC | CF) == after | CF


def test_rdtscp(assisted: Assisted) -> None:
    guest = assisted.guest
    code = b"\x0f\x31\x89\xc3\x89\xd6" + b"\x0f\x01\xf9" + REPORT  # rdtsc; mov ebx, eax; mov esi, edx; rdtscp
    start(guest, code)
    assert reported(assisted.run()) == REPORT_PORT
    regs = registers(guest)
    first, second = regs[abi.RSI] << 32 | regs[abi.RBX], regs[abi.RDX] << 32 | regs[abi.RAX]
    assert 0 < second - first < 10**10
    assert guest.vcpu.get_msrs([TSC_AUX]) == [regs[abi.RCX]]


def test_invpcid_forgets_a_translation(assisted: Assisted) -> None:
    guest = assisted.guest
    entry = TABLES + 0x3000 + 8 * (USER >> 12)
    guest.memory.write(USER, b"\x11")
    guest.memory.write(USER + 0x1000, b"\x22")
    load = mov(7, USER) + b"\x8a\x1f"  # mov bl, [rdi]
    remap = mov(6, entry) + mov(0, USER + 0x1000 | 7) + b"\x48\x89\x06"  # mov [rsi], rax
    flush = mov(1, 2) + mov(0, STACK_TOP - 16) + b"\x66\x0f\x38\x82\x08"  # invpcid rcx, [rax]: all
    start(guest, load + b"\x88\xdf" + remap + flush + load + REPORT)  # mov bh, bl
    if reported(assisted.run()) == EXCEPTION_PORT + 6:
        pytest.skip("the processor has no INVPCID")
    assert registers(guest)[abi.RBX] & 0xFFFF == 0x1122


def test_ldmxcsr_stmxcsr(assisted: Assisted) -> None:
    guest = assisted.guest
    guest.memory.write(USER, struct.pack("<I", 0x7FA0))
    start(guest, mov(3, USER) + b"\x0f\xae\x13\x0f\xae\x5b\x04" + REPORT)  # ldmxcsr [rbx]; stmxcsr [rbx + 4]
    assert reported(assisted.run()) == REPORT_PORT
    assert guest.memory.load_u32(USER + 4) == 0x7FA0
    assert guest.vcpu.get_xsave().mxcsr == 0x7FA0


def test_ldmxcsr_of_reserved_bits(assisted: Assisted) -> None:
    guest = assisted.guest
    guest.memory.write(USER, struct.pack("<I", 0xFFFF_0000))
    start(guest, mov(3, USER) + b"\x0f\xae\x13" + REPORT)
    assert reported(assisted.run()) == EXCEPTION_PORT + 13
    assert frame(guest)[:2] == (0, CODE + 10)


def test_stmxcsr_to_a_page_that_is_not_there(assisted: Assisted) -> None:
    """The assist's own page walk raises the guest's page fault: not present, a write, and CR2."""
    guest = assisted.guest
    guest.memory.store_u64(TABLES + 0x3000 + 8 * (USER >> 12), 0)
    start(guest, mov(3, USER + 4) + b"\x0f\xae\x1b" + REPORT)
    assert reported(assisted.run()) == EXCEPTION_PORT + 14
    assert frame(guest)[:2] == (2, CODE + 10)
    assert guest.vcpu.sregs.cr2 == USER + 4


def test_fnclex_and_fwait(assisted: Assisted) -> None:
    guest = assisted.guest
    fpu = guest.vcpu.get_fpu()
    fpu.fcw, fpu.fsw = 0x37E, 0x8081  # invalid operation, not masked, pending
    guest.vcpu.set_fpu(fpu)
    start(guest, b"\xdb\xe2\x9b" + REPORT)
    assert reported(assisted.run()) == REPORT_PORT
    assert guest.vcpu.get_fpu().fsw == 0


def test_fwait_with_a_pending_exception(assisted: Assisted) -> None:
    guest = assisted.guest
    fpu = guest.vcpu.get_fpu()
    fpu.fcw, fpu.fsw = 0x37E, 0x8081
    guest.vcpu.set_fpu(fpu)
    start(guest, b"\x9b" + REPORT)
    assert reported(assisted.run()) == EXCEPTION_PORT + 16


@pytest.mark.parametrize("flags", [IF, IF | DF | CF])
def test_sysret(assisted: Assisted, flags: int) -> None:
    guest = assisted.guest
    guest.memory.write(USER + 0x100, b"\x0f\x0b")  # ud2: back to ring 0, with a frame
    code = wrmsr(msrs.STAR, STAR) + mov(1, USER + 0x100) + mov(11, flags) + mov(4, USER + 0x800) + b"\x48\x0f\x07"
    start(guest, code)
    assert reported(assisted.run()) == EXCEPTION_PORT + 6
    rip, cs, saved_flags, rsp, ss = struct.unpack("<5Q", guest.memory.read(registers(guest)[abi.RSP], 40))
    assert (rip, cs, saved_flags & 0xFFFF, rsp, ss) == (USER + 0x100, USER_CS, flags | 2, USER + 0x800, USER_SS)


def test_what_nobody_can_do_is_named(assisted: Assisted) -> None:
    code = b"\x66\x0f\xef\xc0"  # pxor xmm0, xmm0
    start(assisted.guest, code + REPORT)
    code_seen = b""
    try:
        assert reported(assisted.run()) == REPORT_PORT  # a complete KVM
    except Unassisted as error:
        code_seen = error.code
    if code_seen:
        assert code_seen.startswith(code)
        assert registers(assisted.guest)[abi.RIP] == CODE


def test_ring_3_code_is_never_assisted(assisted: Assisted) -> None:
    """KVM does not ask for it; were it asked for, ring 0's rights would be lent to ring 3."""
    guest = assisted.guest
    guest.start(USER, ring=3)
    guest.vcpu.store_registers()
    with pytest.raises(Unassisted):
        assisted.assist.handle(EmulationFailure(b"\x0f\xae\x1b".ljust(15, b"\x90")))
