"""MSI-X and INTx as KVM delivers them to a guest."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from tests.kvm.code import HLT, STI, out, running, start, wrmsr
from tests.kvm.test_interrupts import HANDLER, PIC, WAIT, X2APIC_BASE
from vmm.devices.pci.msix import ENABLE, ENTRY_SIZE, FUNCTION_MASK, Msix
from vmm.kvm.exits import PortWrite
from vmm.kvm.irqfd import MsiRouter, assign_irqfd, deassign_irqfd
from vmm.kvm.scratch import IDT, ScratchGuest, gate

pytestmark = pytest.mark.kvm

X2APIC_SPURIOUS, X2APIC_EOI, APIC_ENABLED = 0x80F, 0x80B, 1 << 8
VECTORS = (0x41, 0x42)
IRQ, IRQ_VECTOR = 11, 0x2B
LEVEL_IRQ_11 = b"\x66\xba\xd1\x04\xb0\x08\xee"  # mov dx, 0x4d1; mov al, 8; out dx, al: the second PIC's ELCR
END_OF_INTERRUPT = out(0xA0, 0x20) + out(0x20, 0x20)


@pytest.fixture
def msix(pc: ScratchGuest) -> Iterator[Msix]:
    """Two vectors that are unmasked but not enabled; the guest reports the one that it gets."""
    made = Msix(len(VECTORS), MsiRouter(pc.vm))
    for index, vector in enumerate(VECTORS):
        for offset, value in ((0, 0xFEE0_0000), (4, 0), (8, vector), (12, 0)):
            made.write_table(index * ENTRY_SIZE + offset, 4, value)
        handler = HANDLER + 0x40 * index
        pc.memory.write(IDT + vector * 16, gate(handler))
        pc.memory.write(handler, wrmsr(X2APIC_EOI, 0) + out(0x80, vector) + HLT)
    yield made
    made.close()


def wait_for_messages(pc: ScratchGuest) -> None:
    """Let the guest enable its local APIC and halt."""
    enable = wrmsr(0x1B, X2APIC_BASE) + wrmsr(X2APIC_SPURIOUS, APIC_ENABLED | 0xFF)
    start(pc, enable + out(0x80, 1) + STI + HLT + HLT + out(0x80, 2) + HLT)
    pc.vcpu.sregs.idt.limit = 0xFFF
    event = pc.run()
    assert isinstance(event, PortWrite), event
    assert event.data == b"\x01"


@pytest.mark.parametrize("index", range(len(VECTORS)))
def test_a_message_wakes_a_halted_guest(pc: ScratchGuest, msix: Msix, index: int) -> None:
    msix.set_control(ENABLE)
    wait_for_messages(pc)
    with running(pc.vcpu) as thread:
        assert thread.wait(WAIT) is None
        msix.signal(index)
        event = thread.wait()
    assert isinstance(event, PortWrite)
    assert event.data == bytes([VECTORS[index]])
    assert msix.read_pending(0, 8) == 0


@pytest.mark.parametrize("by", ["vector", "function"])
def test_a_masked_message_comes_when_it_is_unmasked(pc: ScratchGuest, msix: Msix, by: str) -> None:
    msix.set_control(ENABLE)
    if by == "vector":
        msix.write_table(12, 4, 1)
    else:
        msix.set_control(ENABLE | FUNCTION_MASK)
    wait_for_messages(pc)
    with running(pc.vcpu) as thread:
        msix.signal(0)
        assert thread.wait(WAIT) is None
        assert msix.read_pending(0, 8) == 1
        if by == "vector":
            msix.write_table(12, 4, 0)
        else:
            msix.set_control(ENABLE)
        event = thread.wait()
    assert isinstance(event, PortWrite)
    assert event.data == bytes([VECTORS[0]])
    assert msix.read_pending(0, 8) == 0


def test_a_message_may_be_rewritten(pc: ScratchGuest, msix: Msix) -> None:
    msix.set_control(ENABLE)
    msix.write_table(12, 4, 1)
    msix.write_table(8, 4, VECTORS[1])
    msix.write_table(12, 4, 0)
    wait_for_messages(pc)
    msix.signal(0)
    event = pc.run()
    assert isinstance(event, PortWrite)
    assert event.data == bytes([VECTORS[1]])


def test_the_isa_interrupts_stay_where_they_were(pc: ScratchGuest, msix: Msix) -> None:
    """KVM api.rst 4.52: the table replaces the one before it, which was KVM's own."""
    msix.set_control(ENABLE)
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assign_irqfd(pc.vm, fd, IRQ)
        pc.memory.write(IDT + IRQ_VECTOR * 16, gate(HANDLER))
        pc.memory.write(HANDLER, out(0x80, 0x5A) + HLT)
        start(pc, PIC + out(0x80, 1) + STI + HLT)
        pc.vcpu.sregs.idt.limit = 0xFFF
        assert isinstance(pc.run(), PortWrite)
        os.eventfd_write(fd, 1)
        event = pc.run()
        assert isinstance(event, PortWrite)
        assert event.data == b"\x5a"
    finally:
        os.close(fd)


def test_a_level_interrupt_ends_with_the_guests_eoi(pc: ScratchGuest) -> None:
    line, resample = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))
    ended = select.poll()
    ended.register(resample, select.POLLIN)
    try:
        assign_irqfd(pc.vm, line, IRQ, resample)
        pc.memory.write(IDT + IRQ_VECTOR * 16, gate(HANDLER))
        pc.memory.write(HANDLER, out(0x80, 0x5A) + END_OF_INTERRUPT + out(0x80, 0x5B) + b"\x48\xcf")  # iretq
        start(pc, PIC + LEVEL_IRQ_11 + out(0x80, 1) + STI + 8 * HLT)
        pc.vcpu.sregs.idt.limit = 0xFFF
        assert said(pc) == 1
        os.eventfd_write(line, 1)
        for _ in range(3):
            assert said(pc) == 0x5A
            assert not ended.poll(0)
            assert said(pc) == 0x5B
            assert ended.poll(5000)
            os.eventfd_read(resample)
            os.eventfd_write(line, 1)  # a cause is left
        deassign_irqfd(pc.vm, line, IRQ)
    finally:
        os.close(line)
        os.close(resample)


def said(pc: ScratchGuest) -> int:
    """What the guest reports next."""
    event = pc.run()
    assert isinstance(event, PortWrite), event
    return event.data[0]
