"""The state of vCPUs and of a VM as plain values, out of KVM and back into it.

Where KVM's own structs hold it, they are kept as bytes: what is in them is between this KVM and the next one. The
order in which they are set matters; each function does it in the order that it is written down in.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from vmm.errors import HostError, KvmError
from vmm.kvm import abi, msrs
from vmm.kvm.cpuid import difference
from vmm.kvm.ioctl import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from vmm.kvm.system import Kvm
    from vmm.kvm.vcpu import Vcpu
    from vmm.kvm.vm import Vm
    from vmm.state import State

_CHIPS = (abi.KVM_IRQCHIP_PIC_MASTER, abi.KVM_IRQCHIP_PIC_SLAVE, abi.KVM_IRQCHIP_IOAPIC)
#: Each with its GET and SET, in the order of setting. KVM_GET_MP_STATE takes what waits at the local APIC (INIT, SIPI)
#: and may change everything else, so it is got first. The local APIC is set after the special registers, which say
#: where and how it is, and before the MSRs, whose TSC deadline it takes. Events come last: all else may clear them.
_SPECIAL = ("SREGS", abi.KVM_GET_SREGS, abi.KVM_SET_SREGS, abi.kvm_sregs)
_BEFORE_MSRS = (
    ("REGS", abi.KVM_GET_REGS, abi.KVM_SET_REGS, abi.kvm_regs),
    ("XCRS", abi.KVM_GET_XCRS, abi.KVM_SET_XCRS, abi.kvm_xcrs),
    ("XSAVE", abi.KVM_GET_XSAVE, abi.KVM_SET_XSAVE, abi.kvm_xsave),
    ("DEBUGREGS", abi.KVM_GET_DEBUGREGS, abi.KVM_SET_DEBUGREGS, abi.kvm_debugregs),
    ("LAPIC", abi.KVM_GET_LAPIC, abi.KVM_SET_LAPIC, abi.kvm_lapic_state),
)
_EVENTS = ("VCPU_EVENTS", abi.KVM_GET_VCPU_EVENTS, abi.KVM_SET_VCPU_EVENTS, abi.kvm_vcpu_events)
#: struct kvm_msr_entry: index, reserved, data; and how many KVM takes at once.
_MSR, _MSRS_MAX = struct.Struct("<I4xQ"), 256


def msr_indices(kvm: Kvm) -> list[int]:
    """The MSRs that make up a vCPU's state (KVM api.rst 4.3)."""
    table = abi.kvm_msr_list(nmsrs=abi.MSR_INDICES_MAX)
    ioctl("KVM_GET_MSR_INDEX_LIST", kvm.fd, abi.KVM_GET_MSR_INDEX_LIST, table)
    return list(table.indices[: table.nmsrs])


def vcpu_state(vcpu: Vcpu, indices: Sequence[int]) -> State:
    """All of *vcpu*, with those of the MSRs *indices* that can be read. In its own thread, outside the guest."""
    state: State = {"MP_STATE": vcpu.get_mp_state(), "CPUID": vcpu.cpuid}
    for name, request, _, kind in (_SPECIAL, *_BEFORE_MSRS, _EVENTS):
        value = kind()
        ioctl(f"KVM_GET_{name}", vcpu.fd, request, value)
        state[name] = bytes(value)
    state["MSRS"] = _packed(_read_msrs(vcpu, indices).items())
    return state


def restore_vcpu(vcpu: Vcpu, state: State) -> None:
    """Make *vcpu*, which has never run and whose CPUID is set, what *state* says.

    Raises:
        HostError: the processor is another one.
        KvmError: KVM does not take it.
        KeyError, TypeError, ValueError: *state* is none.
    """
    other = difference(vcpu.cpuid, state["CPUID"])
    if other:
        raise HostError(f"is of another processor, or of another KVM on it: CPUID differs in {other}")
    _set(vcpu, _SPECIAL, state)
    vcpu.set_mp_state(state["MP_STATE"])
    for row in _BEFORE_MSRS:
        _set(vcpu, row, state)
    _write_msrs(vcpu, dict(_MSR.iter_unpack(state["MSRS"])))
    _set(vcpu, _EVENTS, state)


def _set(vcpu: Vcpu, row: tuple[str, int, int, Any], state: State) -> None:
    name, _, request, kind = row
    ioctl(f"KVM_SET_{name}", vcpu.fd, request, _struct(kind, state[name]))


def _struct(kind: Any, data: object) -> Any:
    """*data* as the struct *kind*.

    Raises:
        ValueError: its size is another.
    """
    if type(data) is not bytes or len(data) != ctypes.sizeof(kind):
        raise ValueError(f"{kind.__name__} of the wrong size")
    return kind.from_buffer_copy(data)


def _read_msrs(vcpu: Vcpu, indices: Sequence[int]) -> dict[int, int]:
    values: dict[int, int] = {}
    rest = [(index, 0) for index in indices]
    while rest:
        asked = rest[:_MSRS_MAX]
        done, entries = _msrs("KVM_GET_MSRS", vcpu, abi.KVM_GET_MSRS, asked)
        values.update(entries[:done])
        del rest[: done + (done < len(asked))]  # it stops at the first that cannot be read
    return values


def _write_msrs(vcpu: Vcpu, values: dict[int, int]) -> None:
    rest = list(_in_this_tsc(vcpu, values).items())
    while rest:
        given = rest[:_MSRS_MAX]
        done, _ = _msrs("KVM_SET_MSRS", vcpu, abi.KVM_SET_MSRS, given)
        if done < len(given):  # some cannot be set: they may stay what they are
            index, value = given[done]
            if _read_msrs(vcpu, [index]).get(index) != value:
                raise KvmError(f"KVM_SET_MSRS of {index:#x}", errno.EINVAL)
            done += 1
        del rest[:done]


def _msrs(op: str, vcpu: Vcpu, request: int, entries: Sequence[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """How many of *entries*, indices and values, KVM has got or set, and all of them afterwards."""
    data = len(entries).to_bytes(8, "little") + _packed(entries)
    table = ctypes.create_string_buffer(data, len(data))
    done = ioctl(op, vcpu.fd, request, table)
    return done, list(_MSR.iter_unpack(table.raw[8:]))


def _packed(entries: Iterable[tuple[int, int]]) -> bytes:
    return b"".join([_MSR.pack(index, value) for index, value in entries])


def _in_this_tsc(vcpu: Vcpu, values: dict[int, int]) -> dict[int, int]:
    """*values*, with the time at which the local APIC's timer goes off as this vCPU's time stamps say it.

    Software KVM takes a write to the TSC and changes nothing: the guest's is the host's.
    """
    then = values.get(msrs.IA32_TSC)
    if then is None or not values.get(msrs.IA32_TSC_DEADLINE):
        return values
    vcpu.set_msrs({msrs.IA32_TSC: then})
    (now,) = vcpu.get_msrs([msrs.IA32_TSC])
    if now - then < _TSC_SLACK and now >= then:
        return values
    return values | {msrs.IA32_TSC_DEADLINE: values[msrs.IA32_TSC_DEADLINE] + now - then & (1 << 64) - 1}


#: A TSC that can be set is at most so many ticks further when it is read.
_TSC_SLACK = 1 << 30


def vm_state(vm: Vm) -> State:
    """The interrupt controllers and the interval timer. No vCPU runs."""
    chips = []
    for number in _CHIPS:
        chip = abi.kvm_irqchip(chip_id=number)
        ioctl("KVM_GET_IRQCHIP", vm.fd, abi.KVM_GET_IRQCHIP, chip)
        chips.append(bytes(chip))
    pit = abi.kvm_pit_state2()
    ioctl("KVM_GET_PIT2", vm.fd, abi.KVM_GET_PIT2, pit)
    return {"IRQCHIP": chips, "PIT2": bytes(pit)}


def restore_vm(vm: Vm, state: State) -> None:
    """Make the interrupt controllers and the timer of *vm* what *state* says, after its vCPUs' local APICs.

    Raises:
        KvmError: KVM does not take it.
        KeyError, TypeError, ValueError: *state* is none.
    """
    for number, data in zip(_CHIPS, state["IRQCHIP"], strict=True):
        chip = _struct(abi.kvm_irqchip, data)
        chip.chip_id = number
        ioctl("KVM_SET_IRQCHIP", vm.fd, abi.KVM_SET_IRQCHIP, chip)
    ioctl("KVM_SET_PIT2", vm.fd, abi.KVM_SET_PIT2, _struct(abi.kvm_pit_state2, state["PIT2"]))


def get_clock(vm: Vm) -> int:
    """kvm-clock, in nanoseconds (KVM api.rst 4.29)."""
    clock = abi.kvm_clock_data()
    ioctl("KVM_GET_CLOCK", vm.fd, abi.KVM_GET_CLOCK, clock)
    return int(clock.clock)


def set_clock(vm: Vm, clock_ns: int) -> None:
    """Let kvm-clock go on from *clock_ns*."""
    ioctl("KVM_SET_CLOCK", vm.fd, abi.KVM_SET_CLOCK, abi.kvm_clock_data(clock=clock_ns))


def forgive_pause(vcpu: Vcpu) -> None:
    """Tell the guest on *vcpu* that it was stopped, so that its watchdogs do not bark (KVM api.rst 4.70)."""
    try:
        ioctl("KVM_KVMCLOCK_CTRL", vcpu.fd, abi.KVM_KVMCLOCK_CTRL)
    except KvmError as error:
        if error.errno != errno.EINVAL:  # it has no kvm-clock
            raise
