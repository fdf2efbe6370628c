"""SYSCALL from ring 3, and what must not be taken for one: through KVM, whichever kind it is."""

from __future__ import annotations

import struct

import pytest

from tests.kvm.assisted import Assisted
from tests.kvm.code import frame, mov, registers, wrmsr
from vmm.kvm import abi, msrs
from vmm.kvm.exits import PortWrite
from vmm.kvm.scratch import (
    CODE,
    EXCEPTION_PORT,
    IDT,
    KERNEL_CS,
    KERNEL_SS,
    REPORT,
    REPORT_PORT,
    STACK_TOP,
    STAR,
    TABLES,
    USER,
    USER_CS,
    USER_SS,
    USER_STACK_TOP,
    ScratchGuest,
    gate,
)

pytestmark = pytest.mark.kvm

CF, TF, IF, DF, RF, AC = 1, 1 << 8, 1 << 9, 1 << 10, 1 << 16, 1 << 18
#: What Linux masks (arch/x86/kernel/cpu/common.c, syscall_init), but for RF and NT.
MASK = 0x25_3FD5 & ~RF | TF | IF | DF
SYSCALL = b"\x0f\x05"
ENTRY = CODE + 0x400
PF = EXCEPTION_PORT + 14
HANDLER = CODE + 0x800
#: Page-fault handlers by their first instruction: done by the assist itself, or stepped over.
HANDLERS = {
    "endbr64": b"\xf3\x0f\x1e\xfa",
    "nop": b"\x90",
    "nop3": b"\x0f\x1f\x00",
    "cld": b"\xfc",
    "clac": b"\x0f\x01\xca",
    "push": b"\x50\x58",
    "cmp": b"\x3c\x00",
}


def set_up(guest: ScratchGuest, *, handler: bytes = b"", mask: int = MASK) -> Assisted:
    """A guest that has written its SYSCALL MSRs; its page-fault handler begins with *handler*."""
    assisted = Assisted(guest)
    place_handler(guest, handler)
    guest.memory.write(ENTRY, REPORT)
    values = {msrs.STAR: STAR, msrs.LSTAR: ENTRY, msrs.CSTAR: 0, msrs.SYSCALL_MASK: mask}
    write = b"".join(wrmsr(index, value) for index, value in values.items())
    guest.memory.write(CODE, write + REPORT)
    guest.start(CODE)
    assert port(assisted) == REPORT_PORT
    return assisted


def place_handler(guest: ScratchGuest, first: bytes, at: int = HANDLER, idt: int = IDT) -> None:
    """A page-fault handler at *at* that reports like the stub."""
    guest.memory.write(at, first + bytes((0xE6, PF, 0xF4)))
    guest.memory.write(idt + 14 * 16, gate(at))


def port(assisted: Assisted) -> int:
    event = assisted.run()
    assert isinstance(event, PortWrite), event
    return event.port


def start_user(guest: ScratchGuest, code: bytes, flags: int = IF) -> None:
    guest.memory.write(USER, code)
    guest.start(USER, ring=3, flags=flags)


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("flags", [IF, IF | CF | DF, IF | AC])
def test_syscall_arrives_at_lstar(guest: ScratchGuest, handler: str, flags: int) -> None:
    """Intel SDM 2B SYSCALL: RCX = the next RIP, R11 = RFLAGS, RFLAGS &= ~mask, CS and SS from STAR, RSP stays."""
    assisted = set_up(guest, handler=HANDLERS[handler])
    start_user(guest, SYSCALL, flags)
    assert port(assisted) == REPORT_PORT
    regs = registers(guest)
    assert regs[abi.RCX] == USER + 2
    assert regs[abi.R11] & 0xFFFF_FFFF == flags | 2
    assert regs[abi.RFLAGS] & (MASK | RF) == 0
    assert regs[abi.RSP] == USER_STACK_TOP
    sregs = guest.vcpu.sregs
    assert (sregs.cs.selector, sregs.cs.dpl, sregs.cs.l) == (KERNEL_CS, 0, 1)
    assert (sregs.ss.selector, sregs.ss.dpl) == (KERNEL_SS, 0)


def test_syscalls_and_returns(guest: ScratchGuest) -> None:
    """Twenty round trips by SYSCALL and SYSRET; ring 3 counts them in RBX, ring 0 in RBP."""
    assisted = set_up(guest)
    guest.memory.write(ENTRY, b"\x48\xff\xc5\x48\x0f\x07")  # inc rbp; sysret
    loop = SYSCALL + b"\x48\xff\xc3\x48\x83\xfb\x14\x75\xf5\x0f\x0b"  # inc rbx; cmp rbx, 20; jne; ud2
    guest.vcpu.regs[abi.RBX] = guest.vcpu.regs[abi.RBP] = 0
    start_user(guest, loop)
    assert port(assisted) == EXCEPTION_PORT + 6
    regs = registers(guest)
    assert (regs[abi.RBX], regs[abi.RBP]) == (20, 20)
    rip, cs, flags, rsp, ss = struct.unpack("<5Q", guest.memory.read(regs[abi.RSP], 40))
    assert (rip, cs, rsp, ss) == (USER + len(loop) - 2, USER_CS, USER_STACK_TOP, USER_SS)
    assert flags & IF


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("flags", [IF, IF | DF, IF | CF])
def test_a_jump_to_lstar_is_a_page_fault(guest: ScratchGuest, handler: str, flags: int) -> None:
    """Ring 3 can set RCX and R11 as SYSCALL would, but cannot clear IF: the kernel must see its page fault."""
    assisted = set_up(guest, handler=HANDLERS[handler])
    attack = mov(1, USER + 2) + mov(11, flags | 2) + mov(0, ENTRY) + b"\xff\xe0"  # jmp rax
    start_user(guest, attack, flags)
    assert port(assisted) == PF
    error, rip, cs, saved, rsp, ss = frame(guest)
    assert (error, rip, cs, rsp, ss) == (0x15, ENTRY, USER_CS, USER_STACK_TOP, USER_SS)
    assert saved & ~RF == flags | 2
    assert guest.vcpu.sregs.cr2 == ENTRY


def test_a_jump_to_lstar_with_cleared_flags(guest: ScratchGuest) -> None:
    """All that ring 3 may clear is clear: only IF is left to tell."""
    assisted = set_up(guest)
    clear = b"\x6a\x00\x9d"  # push 0; popfq: IF stays, IOPL is 0
    start_user(guest, clear + mov(1, USER + 2) + mov(11, 2) + mov(0, ENTRY) + b"\xff\xe0")
    assert port(assisted) == PF
    assert frame(guest)[1:4:2] == (ENTRY, IF | 2 | RF) or frame(guest)[1:4:2] == (ENTRY, IF | 2)


def test_a_trapping_jump_to_lstar(guest: ScratchGuest) -> None:
    """With TF the jump is followed by #DB at LSTAR or by #PF: either way it is no SYSCALL."""
    assisted = set_up(guest)
    set_tf = b"\x9c\x80\x4c\x24\x01\x01\x9d"  # pushfq; or byte [rsp + 1], 1; popfq
    start_user(guest, mov(0, ENTRY) + set_tf + b"\xff\xe0")
    assert port(assisted) in (PF, EXCEPTION_PORT + 1)
    assert registers(guest)[abi.RIP] != ENTRY + 2


def test_a_single_step_in_ring_3_reaches_the_guest(guest: ScratchGuest) -> None:
    """A debugger in the guest sets TF: the trap is the guest's, also while the assist has its breakpoint."""
    assisted = set_up(guest)
    start_user(guest, b"\x9c\x80\x4c\x24\x01\x01\x9d\x90\x90\x90\x0f\x0b")  # …; popfq; nop; nop; nop; ud2
    assert port(assisted) == EXCEPTION_PORT + 1
    rip, cs = struct.unpack("<2Q", guest.memory.read(registers(guest)[abi.RSP], 16))
    assert (rip, cs) == (USER + 8, USER_CS)


def test_without_if_in_the_mask_nothing_is_taken_for_a_syscall(guest: ScratchGuest) -> None:
    assisted = set_up(guest, mask=DF)
    attack = mov(1, USER + 2) + mov(11, IF | 2) + mov(0, ENTRY) + b"\xff\xe0"
    start_user(guest, attack)
    assert port(assisted) == PF


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_page_fault_in_ring_3(guest: ScratchGuest, handler: str) -> None:
    assisted = set_up(guest, handler=HANDLERS[handler])
    guest.memory.store_u64(TABLES + 0x3000 + 8 * (USER + 0x1000 >> 12), 0)
    start_user(guest, mov(3, USER + 0x1008) + b"\x8a\x03", IF | DF)  # mov al, [rbx]
    assert port(assisted) == PF
    error, rip, cs, saved, rsp, ss = frame(guest)
    assert (error, rip, cs, rsp, ss) == (4, USER + 10, USER_CS, USER_STACK_TOP, USER_SS)
    assert saved & ~RF == IF | DF | 2
    assert guest.vcpu.sregs.cr2 == USER + 0x1008


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_page_fault_in_ring_0(guest: ScratchGuest, handler: str) -> None:
    assisted = set_up(guest, handler=HANDLERS[handler])
    guest.memory.store_u64(TABLES + 0x3000 + 8 * (USER + 0x1000 >> 12), 0)
    guest.memory.write(CODE, mov(3, USER + 0x1008) + b"\x88\x03")  # mov [rbx], al
    guest.start(CODE)
    assert port(assisted) == PF
    error, rip, cs, saved, rsp, ss = frame(guest)
    assert (error, rip, cs, rsp, ss) == (2, CODE + 10, KERNEL_CS, STACK_TOP, KERNEL_SS)
    assert saved & ~RF == 2
    assert guest.vcpu.sregs.cr2 == USER + 0x1008


def test_page_faults_and_syscalls_in_turn(guest: ScratchGuest) -> None:
    """The breakpoint is there again after it was stepped over."""
    assisted = set_up(guest, handler=HANDLERS["push"])
    page = TABLES + 0x3000 + 8 * (USER + 0x1000 >> 12)
    for _ in range(3):
        guest.memory.store_u64(page, 0)
        start_user(guest, mov(3, USER + 0x1008) + b"\x8a\x03")
        assert port(assisted) == PF
        start_user(guest, SYSCALL)
        assert port(assisted) == REPORT_PORT


def test_a_moved_idt_is_followed(guest: ScratchGuest) -> None:
    """The guest loads another IDT, with another page-fault handler; the next assisted instruction notices."""
    assisted = set_up(guest)
    idt, handler = 0xE000, CODE + 0xA00
    guest.memory.write(idt, guest.memory.read(IDT, 512))
    place_handler(guest, b"\x50\x58", at=handler, idt=idt)
    guest.memory.write(STACK_TOP - 16, struct.pack("<HQ", 511, idt))
    guest.memory.write(CODE, mov(3, STACK_TOP - 16) + b"\x0f\x01\x1b\xf3\x0f\xb8\xc0" + REPORT)  # lidt; popcnt
    guest.start(CODE)
    assert port(assisted) == REPORT_PORT
    start_user(guest, SYSCALL)
    guest.vcpu.sregs.idt.base = idt
    assert port(assisted) == REPORT_PORT


def test_a_changed_gate_is_followed(guest: ScratchGuest) -> None:
    """Kernels before 5.8 put another page-fault handler into the same IDT after they wrote MSR_LSTAR."""
    assisted = set_up(guest)
    place_handler(guest, b"\x50\x58", at=CODE + 0xA00)
    guest.memory.write(CODE, b"\xf3\x0f\xb8\xc0" + REPORT)
    guest.start(CODE)
    assert port(assisted) == REPORT_PORT
    start_user(guest, SYSCALL)
    assert port(assisted) == REPORT_PORT


def test_a_bad_lstar_is_a_general_protection_fault(guest: ScratchGuest) -> None:
    assisted = set_up(guest)
    guest.memory.write(CODE, mov(1, msrs.LSTAR) + mov(0, 0) + mov(2, 1 << 31) + b"\x0f\x30" + REPORT)
    guest.start(CODE)
    assert port(assisted) == EXCEPTION_PORT + 13
    assert frame(guest)[:2] == (0, CODE + 30)
    assert guest.vcpu.get_msrs([msrs.LSTAR]) == [ENTRY]
