"""What the guest's CPUID says: the host's table, told of this machine's processors."""

from __future__ import annotations

import struct

from vmm.kvm import abi

#: Bits of leaf 0x4000_0001 by which KVM offers hypercalls to Linux (Documentation/virt/kvm/x86/cpuid.rst).
KVM_FEATURE_MMU_OP = 1 << 2
KVM_FEATURE_PV_UNHALT = 1 << 7
KVM_FEATURE_PV_SEND_IPI = 1 << 11
KVM_FEATURE_PV_SCHED_YIELD = 1 << 13
HYPERCALLING = KVM_FEATURE_MMU_OP | KVM_FEATURE_PV_UNHALT | KVM_FEATURE_PV_SEND_IPI | KVM_FEATURE_PV_SCHED_YIELD

_LEAF1_ECX_CX16 = 1 << 13
_LEAF1_ECX_TSC_DEADLINE = 1 << 24
_LEAF1_ECX_HYPERVISOR = 1 << 31
_LEAF1_EDX_HTT = 1 << 28
_LEAF8000_0007_EDX_INVARIANT_TSC = 1 << 8


def set_topology(table: abi.kvm_cpuid2, index: int, cpus: int, *, tsc_deadline: bool) -> None:
    """Make *table* (from `KVM_GET_SUPPORTED_CPUID`) that of processor *index* of *cpus* single-threaded cores.

    Intel SDM 2A CPUID leaves 1, 4, 0xB, 0x1F; AMD APM 3 leaves 8000_0008, 8000_001E.
    """
    bits = (cpus - 1).bit_length()
    _add_core_levels(table)
    for entry in table.entries[: table.nent]:
        match entry.function:
            case 1:
                entry.ebx = entry.ebx & 0x0000_FFFF | min(cpus, 255) << 16 | index << 24
                entry.ecx |= _LEAF1_ECX_HYPERVISOR | (_LEAF1_ECX_TSC_DEADLINE if tsc_deadline else 0)
                entry.edx = entry.edx | _LEAF1_EDX_HTT if cpus > 1 else entry.edx & ~_LEAF1_EDX_HTT
            case 4:
                level = entry.eax >> 5 & 7
                sharing = (1 << bits) - 1 if level >= 3 else 0
                entry.eax = entry.eax & ~0xFFFF_C000 | ((1 << bits) - 1) << 26 | sharing << 14
            case 0xB | 0x1F:
                entry.edx = index
                if entry.index == 0:  # threads of a core
                    entry.eax, entry.ebx, entry.ecx = 0, 1, 0x100
                elif entry.index == 1:  # cores of the package
                    entry.eax, entry.ebx, entry.ecx = bits, cpus, 0x201
                else:
                    entry.eax, entry.ebx, entry.ecx = 0, 0, entry.index
            case 0x8000_0008:
                entry.ecx = entry.ecx & ~0xF0FF | bits << 12 | cpus - 1
            case 0x8000_001E:
                entry.eax, entry.ebx, entry.ecx = index, index, 0


def _add_core_levels(table: abi.kvm_cpuid2) -> None:
    """Give leaves 0xB and 0x1F their second level; newer kernels leave it to the VMM."""
    entries = table.entries[: table.nent]
    have = {(entry.function, entry.index) for entry in entries}
    for leaf in (0xB, 0x1F):
        if (leaf, 0) in have and (leaf, 1) not in have and table.nent < abi.KVM_MAX_CPUID_ENTRIES:
            added = table.entries[table.nent]
            added.function, added.index, added.flags = leaf, 1, abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            table.nent += 1


def difference(ours: bytes, theirs: bytes) -> str:
    """Where the CPUID table *theirs* is another than *ours*, both as `Vcpu.cpuid`; empty if nowhere."""
    if ours == theirs:
        return ""
    tables = [
        {leaf[:2]: leaf[3:7] for leaf in struct.iter_unpack("<7I12x", table[8:])}
        for table in (ours, theirs[: 8 + (len(theirs) - 8) // 40 * 40])
    ]
    for leaf in sorted(tables[0].keys() | tables[1].keys()):
        if tables[0].get(leaf) != tables[1].get(leaf):
            return f"leaf {leaf[0]:#x}, {leaf[1]}"
    return "the order of the leaves"


def hide(table: abi.kvm_cpuid2, function: int, register: str, bits: int) -> None:
    """Clear *bits* of *register* ("eax" … "edx") in every entry of leaf *function*."""
    for entry in table.entries[: table.nent]:
        if entry.function == function:
            setattr(entry, register, getattr(entry, register) & ~bits)


def hide_hypercalls(table: abi.kvm_cpuid2) -> None:
    """Offer no hypercall: on software KVM `vmcall` in ring 0 never completes."""
    hide(table, 0x4000_0001, "eax", HYPERCALLING)


def hide_invariant_tsc(table: abi.kvm_cpuid2) -> None:
    """Let Linux take kvm-clock for its clock, and not the TSC, which cannot be put right after a restore."""
    hide(table, 0x8000_0007, "edx", _LEAF8000_0007_EDX_INVARIANT_TSC)


def hide_cx16(table: abi.kvm_cpuid2) -> None:
    """Offer no CMPXCHG16B."""
    hide(table, 1, "ecx", _LEAF1_ECX_CX16)
