"""Waking, kicking, doorbells, and a second processor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.kvm.code import HLT, SPIN, STI, mov, out, registers, running, start, wrmsr
from vmm.kvm import abi, cpuid
from vmm.kvm.exits import Halted, Interrupted, MmioWrite, PortWrite, VcpuExit
from vmm.kvm.irqfd import assign_ioeventfd, assign_irqfd, irqchip_routes, set_gsi_routing
from vmm.kvm.scratch import CODE, IDT, MMIO, REPORT, USER, ScratchGuest, gate
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm

#: The PICs at vectors 0x20 and 0x28, all lines open (i8259A, ICW1 … ICW4, OCW1).
PIC = b"".join(
    out(port, value)
    for port, value in (
        *((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)),
        *((0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1), (0xA1, 0)),
    )
)
HANDLER = CODE + 0x800
WAIT = 0.1


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def rung(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def wait_for_interrupt(pc: ScratchGuest, vector: int) -> None:
    """Let the guest program its PICs and halt; *vector* alone has a handler, which reports 0x5A."""
    pc.memory.write(IDT + vector * 16, gate(HANDLER))
    pc.memory.write(HANDLER, out(0x80, 0x5A) + HLT)
    start(pc, PIC + out(0x80, 1) + STI + HLT + out(0x80, 2) + HLT)
    pc.vcpu.sregs.idt.limit = 0xFFF
    match pc.run():
        case PortWrite(0x80, 1, b"\x01"):
            return
        case event:
            pytest.fail(f"{event}")


def test_halt_without_an_irqchip_comes_out(guest: ScratchGuest) -> None:
    start(guest, HLT)
    assert isinstance(guest.run(), Halted)


@pytest.mark.parametrize(("gsi", "vector"), [(5, 0x25), (11, 0x2B)])
def test_irqfd_wakes_a_halted_guest(pc: ScratchGuest, eventfd: int, gsi: int, vector: int) -> None:
    assign_irqfd(pc.vm, eventfd, gsi)
    wait_for_interrupt(pc, vector)
    with running(pc.vcpu) as thread:
        assert thread.wait(WAIT) is None
        os.eventfd_write(eventfd, 1)
        event = thread.wait()
    assert isinstance(event, PortWrite)
    assert event.data == b"\x5a"


def test_routing(pc: ScratchGuest, eventfd: int) -> None:
    """KVM api.rst 4.52: the new table replaces the old one."""
    set_gsi_routing(pc.vm, [*irqchip_routes(), (30, abi.KVM_IRQ_ROUTING_IRQCHIP, (abi.KVM_IRQCHIP_PIC_MASTER, 3))])
    assign_irqfd(pc.vm, eventfd, 30)
    wait_for_interrupt(pc, 0x23)
    os.eventfd_write(eventfd, 1)
    event = pc.run()
    assert isinstance(event, PortWrite)
    assert event.data == b"\x5a"


def test_too_many_routes(pc: ScratchGuest) -> None:
    with pytest.raises(ValueError, match=f"{abi.KVM_MAX_ROUTES + 1} GSI routes"):
        set_gsi_routing(pc.vm, [(0, 0, ())] * (abi.KVM_MAX_ROUTES + 1))


@pytest.mark.parametrize("value", [None, 3])
def test_port_doorbell(guest: ScratchGuest, eventfd: int, value: int | None) -> None:
    assign_ioeventfd(guest.vm, eventfd, 0x90, 1, value, pio=True)
    start(guest, out(0x90, 3) + REPORT)
    event = guest.run()
    assert isinstance(event, PortWrite)
    assert event.port == 0x80
    assert rung(eventfd)


def test_port_doorbell_with_another_value(guest: ScratchGuest, eventfd: int) -> None:
    assign_ioeventfd(guest.vm, eventfd, 0x90, 1, 3, pio=True)
    start(guest, out(0x90, 4) + REPORT)
    event = guest.run()
    assert isinstance(event, PortWrite)
    assert event.port == 0x90
    assert not rung(eventfd)


@pytest.mark.parametrize("value", [0, 1])
def test_mmio_doorbells_by_value(guest: ScratchGuest, eventfd: int, value: int) -> None:
    """As the queues of a virtio-mmio device ring: 4 bytes, one eventfd per value."""
    other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    for number, fd in enumerate((eventfd, other)):
        assign_ioeventfd(guest.vm, fd, MMIO + 0x50, 4, number)
    start(guest, mov(0, value) + mov(3, MMIO + 0x50) + b"\x89\x03" + REPORT)  # mov [rbx], eax
    assert isinstance(guest.run(), PortWrite)
    assert [rung(eventfd), rung(other)] == [value == 0, value == 1]
    start(guest, mov(0, 7) + mov(3, MMIO + 0x50) + b"\x89\x03" + REPORT)
    assert isinstance(guest.run(), MmioWrite)
    os.close(other)


def test_kick_before_the_run(guest: ScratchGuest) -> None:
    start(guest, REPORT)
    guest.vcpu.kick()
    assert isinstance(guest.vcpu.run(), Interrupted)
    assert isinstance(guest.vcpu.run(), PortWrite)


@pytest.mark.parametrize("ring", [0, 3])
def test_kick_while_the_guest_spins(guest: ScratchGuest, ring: int) -> None:
    start(guest, SPIN)
    guest.memory.write(USER, SPIN)
    guest.start(USER if ring else CODE, ring=ring)
    with running(guest.vcpu) as thread:
        assert thread.wait(WAIT) is None
        started = time.perf_counter()
        guest.vcpu.kick()
        assert isinstance(thread.wait(), Interrupted)
        assert time.perf_counter() - started < 1.0


def test_kick_while_the_guest_halts(pc: ScratchGuest) -> None:
    start(pc, HLT + REPORT)
    with running(pc.vcpu) as thread:
        assert thread.wait(WAIT) is None
        pc.vcpu.kick()
        assert isinstance(thread.wait(), Interrupted)


def test_a_kick_is_taken_once(guest: ScratchGuest) -> None:
    """The signal does not stay pending: the run after the interrupted one is whole."""
    start(guest, SPIN)

    def run_twice() -> VcpuExit:
        assert isinstance(guest.vcpu.run(), Interrupted)
        start(guest, REPORT)
        return guest.vcpu.run()

    with running(guest.vcpu, run_twice) as thread:
        assert thread.wait(WAIT) is None
        guest.vcpu.kick()
        assert isinstance(thread.wait(), PortWrite)


X2APIC_BASE, X2APIC_ICR = 0xFEE0_0000 | 1 << 11 | 1 << 10 | 1 << 8, 0x830
INIT, STARTUP = 0x4500, 0x4600


def test_an_application_processor_waits_for_its_sipi(kvm: Kvm, pc: ScratchGuest) -> None:
    """Intel SDM 3A §9.4.4: INIT, SIPI with the page of its first code, in real mode."""
    second = pc.vm.create_vcpu(1)
    table = kvm.supported_cpuid()
    cpuid.set_topology(table, 1, 2, tsc_deadline=False)
    second.set_cpuid(table)
    pc.memory.write(USER, out(0x81, 0x42) + HLT)  # the same bytes in 16-bit code
    try:
        with running(second, lambda: until_an_exit(second)) as thread:
            assert thread.wait(WAIT) is None
            sequence = wrmsr(0x1B, X2APIC_BASE) + wrmsr(X2APIC_ICR, 1 << 32 | INIT)
            start(pc, sequence + wrmsr(X2APIC_ICR, 1 << 32 | STARTUP | USER >> 12) + REPORT)
            assert isinstance(pc.run(), PortWrite)
            match thread.wait():
                case PortWrite(0x81, 1, b"\x42"):
                    pass
                case event:
                    pytest.fail(f"{event}")
    finally:
        second.close()


def until_an_exit(vcpu: Vcpu) -> VcpuExit:
    """Go round while the processor waits, at most 5 s."""
    deadline = time.monotonic() + 5
    while isinstance(event := vcpu.run(), Interrupted) and time.monotonic() < deadline:
        time.sleep(0.001)
    return event


def test_the_guest_sees_its_topology(kvm: Kvm, guest: ScratchGuest) -> None:
    """In ring 0: on software KVM, ring 3 asks the host's own processor."""
    table = kvm.supported_cpuid()
    cpuid.set_topology(table, 2, 4, tsc_deadline=False)
    guest.vcpu.set_cpuid(table)
    leaf1 = guest_cpuid(guest, 1)
    assert leaf1[1] >> 24 == 2  # APIC id
    assert leaf1[1] >> 16 & 0xFF == 4
    assert leaf1[3] >> 28 & 1
    assert guest_cpuid(guest, 0xB, 0)[1:] == [1, 0x100, 2]
    assert guest_cpuid(guest, 0xB, 1) == [2, 4, 0x201, 2]
    assert guest_cpuid(guest, 0xB, 2)[2:] == [2, 2]  # no further level


def guest_cpuid(guest: ScratchGuest, leaf: int, index: int = 0) -> list[int]:
    """EAX, EBX, ECX, EDX."""
    start(guest, mov(0, leaf) + mov(1, index) + b"\x0f\xa2\xf4")  # cpuid; hlt
    assert isinstance(guest.run(), Halted)
    regs = registers(guest)
    return [regs[number] & 0xFFFF_FFFF for number in (abi.RAX, abi.RBX, abi.RCX, abi.RDX)]
