"""A crashed vCPU, told to a person: registers, and the instruction it stopped at."""

from __future__ import annotations

from vmm.errors import GuestMemoryError
from vmm.kvm import abi
from vmm.kvm.assist.paging import GuestException, read_code
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory

_CR0_PG = 1 << 31


def crash_report(vcpu: Vcpu, memory: GuestMemory, code: bytes = b"") -> str:
    """Registers and disassembly of *vcpu*, in its own thread; *code* are the bytes at RIP if KVM gave them."""
    vcpu.fetch_registers()
    regs, sregs = vcpu.regs, vcpu.sregs
    lines = [f"vCPU {vcpu.index}:"]
    names = abi.REGISTER_NAMES
    values = [f"{name:>6}={value:016x}" for name, value in zip(names, regs, strict=True)]
    values += [f"{name:>6}={getattr(sregs, name):016x}" for name in ("cr0", "cr2", "cr3", "cr4", "efer")]
    lines += ["  " + "  ".join(values[start : start + 4]) for start in range(0, len(values), 4)]
    lines.append(f"  idt: base={sregs.idt.base:#x} limit={sregs.idt.limit:#x}")
    for name in ("cs", "ss"):
        segment: abi.kvm_segment = getattr(sregs, name)
        lines.append(f"  {name}: selector={segment.selector:#x} base={segment.base:#x} dpl={segment.dpl} l={segment.l}")
    lines += _disassembly(regs[abi.RIP], code or _code_at_rip(vcpu, memory), _mode_bits(sregs))
    return "\n".join(lines)


def _code_at_rip(vcpu: Vcpu, memory: GuestMemory) -> bytes:
    sregs, rip = vcpu.sregs, vcpu.regs[abi.RIP]
    try:
        if sregs.cr0 & _CR0_PG and sregs.cs.l:
            return read_code(memory, sregs, rip)
        return b"" if sregs.cr0 & _CR0_PG else memory.read(sregs.cs.base + rip, 15)
    except (GuestException, GuestMemoryError):
        return b""


def _mode_bits(sregs: abi.kvm_sregs) -> int:
    return 64 if sregs.cs.l else 32 if sregs.cs.db else 16


def _disassembly(rip: int, code: bytes, bits: int) -> list[str]:
    if not code:
        return [f"  no code can be read at {rip:#x}"]
    import capstone

    lines = [f"  code: {code.hex(' ')}"]
    mode = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}[bits]
    decoded = list(capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, rip))
    lines += [
        f"  {'->' if i.address == rip else '  '} {i.address:#x}: {i.mnemonic} {i.op_str}".rstrip() for i in decoded
    ]
    return lines if decoded else [*lines, f"  -> {rip:#x}: not an instruction"]
