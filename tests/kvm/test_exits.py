"""One tiny guest for each way out of it."""

from __future__ import annotations

import errno

import pytest

from tests.kvm.code import HLT, mov, out, registers, start, wrmsr
from vmm.errors import KvmError
from vmm.kvm import abi, msrs
from vmm.kvm.exits import DebugTrap, Halted, MmioRead, MmioWrite, MsrWrite, PortRead, PortWrite, Shutdown
from vmm.kvm.ioctl import ioctl
from vmm.kvm.scratch import CODE, MMIO, REPORT, STACK_TOP, USER, ScratchGuest
from vmm.kvm.system import Kvm
from vmm.kvm.vm import Vm

pytestmark = pytest.mark.kvm

AL_AX_EAX = {1: (b"\xee", b"\xec"), 2: (b"\x66\xef", b"\x66\xed"), 4: (b"\xef", b"\xed")}  # out dx, in dx
LOADS = {1: b"\x8a\x03", 2: b"\x66\x8b\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}  # from [rbx] to rax
STORES = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}
VALUE = 0x1122_3344_5566_7788
CANONICAL = 0xFFFF_8000_1234_5678
KERNEL_GS_BASE = 0xC000_0102


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_write(guest: ScratchGuest, size: int) -> None:
    start(guest, mov(0, VALUE) + mov(2, 0x1234) + AL_AX_EAX[size][0] + HLT)
    match guest.run():
        case PortWrite(0x1234, seen, data):
            assert (seen, data) == (size, VALUE.to_bytes(8, "little")[:size])
        case event:
            pytest.fail(f"{event}")
    assert isinstance(guest.run(), Halted)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_read(guest: ScratchGuest, size: int) -> None:
    start(guest, mov(0, 0) + mov(2, 0x1234) + AL_AX_EAX[size][1] + HLT)
    match guest.run():
        case PortRead(0x1234, seen, 1):
            assert seen == size
        case event:
            pytest.fail(f"{event}")
    answer = VALUE & (1 << 8 * size) - 1
    guest.vcpu.reply_port(answer)
    assert isinstance(guest.run(), Halted)
    assert registers(guest)[abi.RAX] == answer


def test_string_port_write(guest: ScratchGuest) -> None:
    text = b"hello, host"
    guest.memory.write(USER, text)
    start(guest, mov(6, USER) + mov(1, len(text)) + mov(2, 0x3F8) + b"\xf3\x6e" + HLT)  # rep outsb
    seen = b""
    while isinstance(event := guest.run(), PortWrite):
        assert (event.port, event.size) == (0x3F8, 1)
        seen += event.data
    assert isinstance(event, Halted)
    assert seen == text


def test_string_port_read(guest: ScratchGuest) -> None:
    start(guest, mov(7, USER) + mov(1, 4) + mov(2, 0x60) + b"\xf3\x66\x6d" + HLT)  # rep insw
    given = 0
    while isinstance(event := guest.run(), PortRead):
        assert (event.port, event.size) == (0x60, 2)
        for item in range(event.count):
            guest.vcpu.reply_port(0x1000 + given + item, item)
        given += event.count
    assert isinstance(event, Halted)
    assert guest.memory.read(USER, 8) == bytes.fromhex("0010 0110 0210 0310")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_read(guest: ScratchGuest, size: int) -> None:
    start(guest, mov(0, 0) + mov(3, MMIO + 0x40) + LOADS[size] + HLT)
    match guest.run():
        case MmioRead(gpa, seen):
            assert (gpa, seen) == (MMIO + 0x40, size)
        case event:
            pytest.fail(f"{event}")
    answer = VALUE & (1 << 8 * size) - 1
    guest.vcpu.reply_mmio(answer)
    assert isinstance(guest.run(), Halted)
    assert registers(guest)[abi.RAX] == answer


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_write(guest: ScratchGuest, size: int) -> None:
    start(guest, mov(0, VALUE) + mov(3, MMIO + 8) + STORES[size] + HLT)
    match guest.run():
        case MmioWrite(gpa, seen, value):
            assert (gpa, seen, value) == (MMIO + 8, size, VALUE & (1 << 8 * size) - 1)
        case event:
            pytest.fail(f"{event}")
    assert isinstance(guest.run(), Halted)


def test_triple_fault(guest: ScratchGuest) -> None:
    start(guest, b"\x0f\x0b")  # ud2
    guest.vcpu.sregs.idt.limit = 0
    assert isinstance(guest.run(), Shutdown)


@pytest.mark.parametrize("error", [False, True])
def test_filtered_msr_write(guest: ScratchGuest, *, error: bool) -> None:
    """KVM api.rst 7.21: the write comes out, and the answer may be a #GP. Other MSRs do not come out."""
    msrs.report_writes(guest.vm, msrs.STAR, 4)
    start(guest, wrmsr(KERNEL_GS_BASE, CANONICAL) + wrmsr(msrs.LSTAR, CANONICAL) + REPORT)
    match guest.run():
        case MsrWrite(msrs.LSTAR, value):
            assert value == CANONICAL
        case event:
            pytest.fail(f"{event}")
    guest.vcpu.reply_msr(error=error)
    match guest.run():
        case PortWrite(port):
            assert port == (0xC0 + 13 if error else 0x80)
        case event:
            pytest.fail(f"{event}")
    assert guest.vcpu.get_msrs([msrs.LSTAR]) == [0]  # the filter leaves it to the VMM


def test_the_hosts_own_msr_write_is_not_filtered(guest: ScratchGuest) -> None:
    msrs.report_writes(guest.vm, msrs.STAR, 4)
    assert guest.vcpu.set_msrs({msrs.LSTAR: CODE, msrs.SYSCALL_MASK: 0x200})
    assert guest.vcpu.get_msrs([msrs.LSTAR, msrs.SYSCALL_MASK]) == [CODE, 0x200]


def test_breakpoint(guest: ScratchGuest) -> None:
    start(guest, b"\x90" * 3 + REPORT)
    guest.vcpu.debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP, CODE + 2)
    match guest.run():
        case DebugTrap(pc, dr6):
            assert pc == CODE + 2
            assert dr6 & 1
        case event:
            pytest.fail(f"{event}")
    guest.vcpu.debug(0)
    assert isinstance(guest.run(), PortWrite)


def test_single_step(guest: ScratchGuest) -> None:
    start(guest, b"\x90" * 3 + REPORT)
    guest.vcpu.debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)
    seen = []
    for _ in range(3):
        event = guest.run()
        assert isinstance(event, DebugTrap)
        seen.append(event.pc)
    assert seen == [CODE + 1, CODE + 2, CODE + 3]


def test_synchronized_registers(guest: ScratchGuest) -> None:
    """KVM api.rst, KVM_CAP_SYNC_REGS: current after an exit, taken back if they are dirty, and only then."""
    vcpu = guest.vcpu
    vcpu.synchronize(abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS | abi.KVM_SYNC_X86_EVENTS)
    start(guest, mov(0, VALUE) + REPORT[:2] + b"\x48\x89\xd8" + REPORT)  # out; mov rax, rbx; out
    assert isinstance(guest.run(), PortWrite)
    assert (vcpu.regs[abi.RAX], vcpu.regs[abi.RIP], vcpu.regs[abi.RSP]) == (VALUE, CODE + 12, STACK_TOP)
    assert vcpu.sregs.cs.selector == 0x10
    vcpu.regs[abi.RBX] = 0x77
    vcpu.mark_dirty(abi.KVM_SYNC_X86_REGS)
    assert isinstance(guest.run(), PortWrite)
    assert vcpu.regs[abi.RAX] == 0x77
    vcpu.regs[abi.RAX] = 0  # not marked: lost
    assert registers(guest)[abi.RAX] == 0x77


def test_an_interrupt_that_was_injected_is_not_injected_once_more(guest: ScratchGuest) -> None:
    """KVM leaves its vector in the bitmap for good. Taken back with the rest, it would come again, and end the HLT."""
    vcpu = guest.vcpu
    vcpu.synchronize(abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS)
    start(guest, REPORT + REPORT)  # out; hlt; out; hlt
    assert isinstance(guest.run(), PortWrite)
    vcpu.sregs.interrupt_bitmap[0xEC // 64] = 1 << 0xEC % 64
    vcpu.mark_dirty(abi.KVM_SYNC_X86_SREGS)
    assert isinstance(guest.run(), Halted)


def test_errors_name_the_ioctl(guest: ScratchGuest) -> None:
    with pytest.raises(KvmError) as caught:
        guest.vm.set_memory(1, 0, 1, 0)  # neither aligned nor free
    assert (caught.value.op, caught.value.errno) == ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL)
    with pytest.raises(KvmError) as caught:
        guest.vm.create_vcpu(0)
    assert (caught.value.op, caught.value.errno) == ("KVM_CREATE_VCPU", errno.EEXIST)
    with pytest.raises(KvmError) as caught:
        guest.vcpu.get_msrs([0xDEAD_BEEF])
    assert caught.value.op == "KVM_GET_MSRS"
    assert not guest.vcpu.set_msrs({msrs.LSTAR: 1 << 63})  # not canonical


def test_ioctl_of_a_closed_descriptor(kvm: Kvm) -> None:
    with pytest.raises(KvmError) as caught:
        ioctl("KVM_RUN", -1, abi.KVM_RUN)
    assert caught.value.errno == errno.EBADF
    assert Vm.__doc__
    assert kvm.missing_capabilities() == []


def test_many_exits_in_a_row(guest: ScratchGuest) -> None:
    start(guest, b"".join(out(0x80, value) for value in range(100)) + HLT)
    seen = b""
    while isinstance(event := guest.run(), PortWrite):
        seen += event.data
    assert seen == bytes(range(100))
