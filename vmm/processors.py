"""The processors before they run: what their CPUID says, the assist where KVM needs one, the kernel's entry state."""

from __future__ import annotations

from functools import cache

from vmm.kvm import abi, cpuid, msrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boot.plan import BootPlan, Segment
    from vmm.kvm.assist.vcpu import VcpuAssist
    from vmm.kvm.system import Kvm
    from vmm.kvm.vcpu import Vcpu
    from vmm.memory import GuestMemory
    from vmm.session import Session


def prepare(vcpu: Vcpu, kvm: Kvm, memory: GuestMemory, session: Session) -> VcpuAssist | None:
    """Make *vcpu* one of the processors of *session*'s machine; its assist, on a host that needs one."""
    complete = session.host.complete
    supported = bytes(kvm.supported_cpuid())
    tsc_deadline = bool(kvm.check_extension(abi.KVM_CAP_TSC_DEADLINE_TIMER))
    table = _cpuid(supported, vcpu.index, session.config.cpus, tsc_deadline=tsc_deadline, complete=complete)
    vcpu.set_cpuid(abi.kvm_cpuid2.from_buffer_copy(table))
    vcpu.set_msrs({msrs.IA32_MISC_ENABLE: msrs.MISC_ENABLE_FAST_STRINGS})  # what firmware does on Intel
    if complete:
        return None
    from vmm.kvm.assist.vcpu import VcpuAssist

    return VcpuAssist(vcpu, memory, session.assists, session.trace("assist"))


@cache  # 0.2 ms, of a restore's 3
def _cpuid(supported: bytes, index: int, cpus: int, *, tsc_deadline: bool, complete: bool) -> bytes:
    """What the CPUID of processor *index* of *cpus* says, on a KVM with the table *supported*."""
    table = abi.kvm_cpuid2.from_buffer_copy(supported)
    cpuid.set_topology(table, index, cpus, tsc_deadline=tsc_deadline)
    cpuid.hide_invariant_tsc(table)
    if not complete:
        cpuid.hide_hypercalls(table)
        cpuid.hide_cx16(table)
    return bytes(table)


def enter(vcpu: Vcpu, plan: BootPlan) -> None:
    """Put *vcpu* at the kernel's first instruction."""
    entry = plan.entry
    vcpu.fetch_registers()
    sregs, regs = vcpu.sregs, vcpu.regs
    _load_segment(sregs.cs, entry.code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        _load_segment(getattr(sregs, name), entry.data)
    _load_segment(sregs.tr, entry.task)
    sregs.ldt.unusable = 1
    sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = entry.gdt_base, entry.gdt_limit, 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = entry.cr0, entry.cr3, entry.cr4, entry.efer
    for index in range(len(regs)):
        regs[index] = 0
    regs[abi.RIP], regs[abi.RSP], regs[abi.RFLAGS] = entry.rip, entry.rsp, 2
    regs[abi.RSI], regs[abi.RBX] = entry.rsi, entry.rbx
    vcpu.store_registers()


def _load_segment(target: abi.kvm_segment, source: Segment) -> None:
    target.selector, target.base, target.limit = source.selector, source.base, source.limit
    target.type, target.s, target.db, target.l, target.g = (
        source.type,
        source.s,
        source.db,
        source.code64,
        source.granular,
    )
    target.present, target.dpl, target.unusable, target.avl = 1, 0, 0, 0
