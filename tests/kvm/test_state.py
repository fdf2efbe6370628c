"""The state of a processor and of KVM's own devices: each part of it is what it was, in another machine."""

from __future__ import annotations

import pytest

from tests.kvm.machines import ECHO, Machines
from vmm.kvm import abi, msrs, state

#: struct kvm_msr_entry of a new processor, and as a kernel leaves it.
LSTAR, ALTERED_LSTAR = ((msrs.LSTAR | value << 64).to_bytes(16, "little") for value in (0, 0xFFFF_8000_0012_3456))


def altered(data: bytes, at: int, value: int) -> bytes:
    """*data* with the byte *at* made *value*, which it was not."""
    assert data[at] != value
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("part", "at", "value"),
    [
        pytest.param("REGS", 8, 0x12, id="rbx"),
        pytest.param("SREGS", abi.kvm_sregs.cr2.offset, 0x12, id="cr2"),
        pytest.param("XCRS", abi.kvm_xcrs.xcrs.offset + abi.kvm_xcr.value.offset, 3, id="xcr0"),
        pytest.param("XSAVE", 0, 0x40, id="x87-control-word"),
        pytest.param("DEBUGREGS", 0, 0x12, id="dr0"),
        pytest.param("LAPIC", 0xF0, 0xEF, id="spurious-vector"),
        pytest.param("VCPU_EVENTS", abi.kvm_vcpu_events.nmi_masked.offset, 1, id="nmi-masked"),
    ],
)
def test_a_processor_s(machines: Machines, part: str, at: int, value: int) -> None:
    first, second = (machines.make(machines.config(ECHO)) for _ in range(2))
    indices = state.msr_indices(first._kvm)
    then = state.vcpu_state(first._runners[0].vcpu, indices)
    then[part] = altered(then[part], at, value)
    if part == "XSAVE":
        then[part] = then[part][:512] + b"\1" + then[part][513:]  # xstate_bv: x87 is not as at reset
    state.restore_vcpu(second._runners[0].vcpu, then)
    assert state.vcpu_state(second._runners[0].vcpu, indices)[part] == then[part]


def test_a_processor_s_msrs_and_whether_it_halts(machines: Machines) -> None:
    first, second = (machines.make(machines.config(ECHO)) for _ in range(2))
    indices = state.msr_indices(first._kvm)
    then = state.vcpu_state(first._runners[0].vcpu, indices)
    assert then["MSRS"].count(LSTAR) == 1
    then |= {"MSRS": then["MSRS"].replace(LSTAR, ALTERED_LSTAR), "MP_STATE": abi.KVM_MP_STATE_HALTED}
    state.restore_vcpu(second._runners[0].vcpu, then)
    now = state.vcpu_state(second._runners[0].vcpu, indices)
    assert now["MP_STATE"] == abi.KVM_MP_STATE_HALTED
    assert ALTERED_LSTAR in now["MSRS"]


@pytest.mark.parametrize(
    ("chip", "at"),
    [
        pytest.param(0, abi.kvm_irqchip.chip.offset + 2, id="master-pic-mask"),
        pytest.param(1, abi.kvm_irqchip.chip.offset + 2, id="slave-pic-mask"),
        pytest.param(2, abi.kvm_irqchip.chip.offset + 24 + 8 * 5, id="io-apic-vector-of-pin-5"),
    ],
)
def test_an_interrupt_controller_s(machines: Machines, chip: int, at: int) -> None:
    first, second = (machines.make(machines.config(ECHO)) for _ in range(2))
    then = state.vm_state(first._vm)
    then["IRQCHIP"][chip] = altered(then["IRQCHIP"][chip], at, 0x31)
    state.restore_vm(second._vm, then)
    assert state.vm_state(second._vm)["IRQCHIP"] == then["IRQCHIP"]


def test_the_timer_s_count(machines: Machines) -> None:
    first, second = (machines.make(machines.config(ECHO)) for _ in range(2))
    then = state.vm_state(first._vm)
    then["PIT2"] = altered(then["PIT2"], 48, 0x31)  # channel 2, whose reloads nothing waits for
    state.restore_vm(second._vm, then)
    assert state.vm_state(second._vm)["PIT2"][48:64] == then["PIT2"][48:64]
