"""The instructions that the emulator of software KVM lacks, done here one by one.

To add one: a function under `@assists` with its encoding, here or (x87, SSE, XSAVE) in `fpu.py`. It gets the `Cpu` and
the decoded `Instruction`, changes registers or memory, and returns; RIP is moved past the instruction by the caller,
before the function runs. All of them run at CPL 0: ring 3 code is native there. `LZCNT` and `TZCNT` cannot be here:
KVM runs them as `BSR` and `BSF` without telling anybody.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.kvm import abi, msrs
from vmm.kvm.assist import segments
from vmm.kvm.assist.decode import GPR, MAP_0F, MAP_0F3A, MAP_0F38, MAP_PRIMARY, Instruction, Undecodable
from vmm.kvm.assist.paging import VECTOR_GP, GuestException, read_linear
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory

CF, PF, AF, ZF, SF, IF, OF, RF, AC = (1 << bit for bit in (0, 2, 4, 6, 7, 9, 11, 16, 18))
_ARITHMETIC = CF | PF | AF | ZF | SF | OF
_VECTOR_BP = 3
_SYSRET_FLAGS = 0x3C_7FD7
_TSC_AUX = 0xC000_0103
_CR4_PGE = 1 << 7


class Cpu:
    """What an assisted instruction may see and change of its vCPU; registers are current when it runs."""

    __slots__ = ("memory", "regs", "soft_interrupt", "star", "vcpu")

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        self.vcpu, self.memory = vcpu, memory
        self.regs = vcpu.regs
        self.star = 0  # MSR_STAR as the guest last wrote it
        self.soft_interrupt: int | None = None  # the vector that `INT n` asks for

    @property
    def sregs(self) -> abi.kvm_sregs:
        """The vCPU's system registers."""
        return self.vcpu.sregs

    def linear(self, ins: Instruction) -> int:
        """The linear address of the memory operand."""
        if ins.address is None:
            raise Undecodable
        base: int = getattr(self.sregs, ins.segment).base if ins.segment in ("fs", "gs") else 0
        return ins.address + base & (1 << 64) - 1

    def operand(self, ins: Instruction, size: int) -> int:
        """The *size* bytes of the r/m operand."""
        if ins.rm is not None:
            value: int = self.regs[GPR[ins.rm]]
            return value & (1 << 8 * size) - 1
        return int.from_bytes(read_linear(self.memory, self.sregs, self.linear(ins), size), "little")

    def set_register(self, number: int, value: int, size: int) -> None:
        """Write a general register: 4 bytes clear the upper half, 2 leave the rest."""
        index = GPR[number]
        if size == 2:
            value = self.regs[index] & ~0xFFFF | value & 0xFFFF
        self.regs[index] = value & ((1 << 64) - 1 if size != 4 else 0xFFFF_FFFF)

    def set_flags(self, mask: int, value: int) -> None:
        """Replace the flags in *mask* by *value*."""
        self.regs[abi.RFLAGS] = self.regs[abi.RFLAGS] & ~mask | value


Handler = Callable[[Cpu, Instruction], None]


class Assist:
    """One row of the table: the encoding (None = any) and the function."""

    __slots__ = ("handler", "modrm", "name", "prefix", "reg", "vex")

    def __init__(
        self, name: str, handler: Handler, *, prefix: int | None, modrm: int | None, reg: int | None, vex: bool
    ) -> None:
        self.name, self.prefix, self.modrm, self.reg, self.vex = name, prefix, modrm, reg, vex
        self.handler = handler

    def matches(self, ins: Instruction) -> bool:
        """Whether *ins*, whose map and opcode agree, is this instruction."""
        return (
            (self.prefix is None or self.prefix == ins.prefix)
            and (self.modrm is None or self.modrm == ins.modrm)
            and (self.reg is None or self.reg == ins.reg & 7)
            and self.vex == (ins.vvvv is not None)
        )


ASSISTS: dict[tuple[int, int], list[Assist]] = {}


def assists(
    name: str,
    opcode_map: int,
    opcode: int,
    *,
    prefix: int | None = None,
    modrm: int | None = None,
    reg: int | None = None,
    vex: bool = False,
) -> Callable[[Handler], Handler]:
    """Declare the decorated function as what does the instruction *name* of this encoding."""

    def declare(handler: Handler) -> Handler:
        row = Assist(name, handler, prefix=prefix, modrm=modrm, reg=reg, vex=vex)
        ASSISTS.setdefault((opcode_map, opcode), []).append(row)
        return handler

    return declare


def find(ins: Instruction) -> Assist:
    """The row that does *ins*.

    Raises:
        Undecodable: there is none.
    """
    for row in ASSISTS.get((ins.opcode_map, ins.opcode), ()):
        if row.matches(ins):
            return row
    raise Undecodable


def _size(ins: Instruction) -> int:
    return 8 if ins.rex_w else 2 if ins.operand16 else 4


# -- control flow ----------------------------------------------------------------------------------------------------


@assists("int3", MAP_PRIMARY, 0xCC)
def _int3(cpu: Cpu, _: Instruction) -> None:
    cpu.soft_interrupt = _VECTOR_BP


@assists("int", MAP_PRIMARY, 0xCD)
def _int(cpu: Cpu, ins: Instruction) -> None:
    cpu.soft_interrupt = ins.immediate


@assists("sysret", MAP_0F, 0x07)
def sysret(cpu: Cpu, ins: Instruction) -> None:
    """AMD APM 3 SYSRET, Intel SDM 2B: back to ring 3 at RCX with the flags in R11."""
    regs, sregs = cpu.regs, cpu.sregs
    target = regs[abi.RCX]
    selector = cpu.star >> 48
    if ins.rex_w:
        if (target >> 47) not in (0, 0x1_FFFF):
            raise GuestException(VECTOR_GP, 0)
        segments.load_code(sregs.cs, selector + 16 | 3, 3, long=True)
    else:
        target &= 0xFFFF_FFFF
        segments.load_code(sregs.cs, selector | 3, 3, long=False)
    segments.load_stack(sregs.ss, selector + 8 | 3, 3)
    regs[abi.RIP] = target
    regs[abi.RFLAGS] = regs[abi.R11] & _SYSRET_FLAGS | 2
    cpu.vcpu.mark_dirty(abi.KVM_SYNC_X86_SREGS)


# -- flags, timestamps, caches ---------------------------------------------------------------------------------------


@assists("clac", MAP_0F, 0x01, prefix=0, modrm=0xCA)
def _clac(cpu: Cpu, _: Instruction) -> None:
    cpu.set_flags(AC, 0)


@assists("stac", MAP_0F, 0x01, prefix=0, modrm=0xCB)
def _stac(cpu: Cpu, _: Instruction) -> None:
    cpu.set_flags(AC, AC)


@assists("rdtscp", MAP_0F, 0x01, prefix=0, modrm=0xF9)
def _rdtscp(cpu: Cpu, _: Instruction) -> None:
    tsc, aux = cpu.vcpu.get_msrs((msrs.IA32_TSC, _TSC_AUX))
    cpu.regs[abi.RAX], cpu.regs[abi.RDX], cpu.regs[abi.RCX] = tsc & 0xFFFF_FFFF, tsc >> 32, aux & 0xFFFF_FFFF


@assists("rdpid", MAP_0F, 0xC7, prefix=0xF3, reg=7)
def _rdpid(cpu: Cpu, ins: Instruction) -> None:
    if ins.rm is None:
        raise Undecodable
    cpu.set_register(ins.rm, cpu.vcpu.get_msrs((_TSC_AUX,))[0], 8)


@assists("clwb", MAP_0F, 0xAE, prefix=0x66, reg=6)
def _clwb(cpu: Cpu, ins: Instruction) -> None:
    # It faults like a load; guest RAM has no cache of its own to write back.
    read_linear(cpu.memory, cpu.sregs, cpu.linear(ins), 1)


@assists("invpcid", MAP_0F38, 0x82, prefix=0x66)
def _invpcid(cpu: Cpu, _: Instruction) -> None:
    # Every kind of invalidation may invalidate more: toggling CR4.PGE flushes all (Intel SDM 3A §4.10.4.1).
    cpu.sregs.cr4 ^= _CR4_PGE
    cpu.vcpu.store_registers()
    cpu.sregs.cr4 ^= _CR4_PGE
    cpu.vcpu.mark_dirty(abi.KVM_SYNC_X86_SREGS)


# -- segments --------------------------------------------------------------------------------------------------------


_CONFORMING = frozenset((0x1C, 0x1D, 0x1E, 0x1F))
_SEGMENTS = frozenset(range(0x10, 0x20))
_HAVE_LIMIT = _SEGMENTS | {0x02, 0x09, 0x0B}  # also LDT and 64-bit TSS
_HAVE_RIGHTS = _HAVE_LIMIT | {0x0C}  # also call gates


def _descriptor(cpu: Cpu, ins: Instruction, kinds: frozenset[int]) -> int | None:
    """The GDT descriptor that the selector in r/m names, or None where the processor would clear ZF.

    *kinds* are the descriptor types (with the S bit) that the instruction takes. LDTs are not looked at.
    """
    selector = cpu.operand(ins, 2)
    offset = selector & ~7
    if not offset or selector & 4 or offset + 7 > cpu.sregs.gdt.limit:
        return None
    base: int = cpu.sregs.gdt.base
    raw = read_linear(cpu.memory, cpu.sregs, base + offset & (1 << 64) - 1, 8)
    descriptor = int.from_bytes(raw, "little")
    kind = descriptor >> 40 & 0x1F
    if kind not in kinds or (kind not in _CONFORMING and selector & 3 > descriptor >> 45 & 3):
        return None
    return descriptor


@assists("lsl", MAP_0F, 0x03)
def _lsl(cpu: Cpu, ins: Instruction) -> None:
    descriptor = _descriptor(cpu, ins, _HAVE_LIMIT)
    if descriptor is not None:
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
        cpu.set_register(ins.reg, limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit, _size(ins))
    cpu.set_flags(ZF, 0 if descriptor is None else ZF)


@assists("lar", MAP_0F, 0x02)
def _lar(cpu: Cpu, ins: Instruction) -> None:
    descriptor = _descriptor(cpu, ins, _HAVE_RIGHTS)
    if descriptor is not None:
        cpu.set_register(ins.reg, descriptor >> 32 & 0xFF_FF00, _size(ins))
    cpu.set_flags(ZF, 0 if descriptor is None else ZF)


@assists("verr", MAP_0F, 0x00, reg=4)
def _verr(cpu: Cpu, ins: Instruction) -> None:
    kind = (_descriptor(cpu, ins, _SEGMENTS) or 0) >> 40 & 0x1F
    cpu.set_flags(ZF, ZF if kind & 0x18 == 0x10 or kind & 0x1A == 0x1A else 0)


@assists("verw", MAP_0F, 0x00, reg=5)
def _verw(cpu: Cpu, ins: Instruction) -> None:
    kind = (_descriptor(cpu, ins, _SEGMENTS) or 0) >> 40
    cpu.set_flags(ZF, ZF if kind & 0x1A == 0x12 else 0)


# -- bit counting, CRC, BMI, ADX -------------------------------------------------------------------------------------


@assists("popcnt", MAP_0F, 0xB8, prefix=0xF3)
def _popcnt(cpu: Cpu, ins: Instruction) -> None:
    value = cpu.operand(ins, _size(ins))
    cpu.set_register(ins.reg, value.bit_count(), _size(ins))
    cpu.set_flags(_ARITHMETIC, 0 if value else ZF)


def _crc32(cpu: Cpu, ins: Instruction, data: int, size: int) -> None:
    crc = cpu.regs[GPR[ins.reg]] & 0xFFFF_FFFF ^ data
    for _ in range(8 * size):
        crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)  # Castagnoli, reflected
    cpu.set_register(ins.reg, crc, 8)


@assists("crc32", MAP_0F38, 0xF0, prefix=0xF2)
def _crc32_byte(cpu: Cpu, ins: Instruction) -> None:
    if ins.rm is not None and 4 <= ins.rm < 8 and not ins.has_rex:  # AH … BH
        _crc32(cpu, ins, cpu.regs[GPR[ins.rm - 4]] >> 8 & 0xFF, 1)
    else:
        _crc32(cpu, ins, cpu.operand(ins, 1), 1)


@assists("crc32", MAP_0F38, 0xF1, prefix=0xF2)
def _crc32_word(cpu: Cpu, ins: Instruction) -> None:
    _crc32(cpu, ins, cpu.operand(ins, _size(ins)), _size(ins))


@assists("andn", MAP_0F38, 0xF2, prefix=0, vex=True)
def _andn(cpu: Cpu, ins: Instruction) -> None:
    size = _size(ins)
    value = ~cpu.regs[GPR[ins.vvvv or 0]] & cpu.operand(ins, size)
    cpu.set_register(ins.reg, value, size)
    sign = SF if value >> 8 * size - 1 & 1 else 0
    cpu.set_flags(_ARITHMETIC, sign | (0 if value else ZF))


@assists("shlx", MAP_0F38, 0xF7, prefix=0x66, vex=True)
@assists("shrx", MAP_0F38, 0xF7, prefix=0xF2, vex=True)
@assists("sarx", MAP_0F38, 0xF7, prefix=0xF3, vex=True)
def _shift(cpu: Cpu, ins: Instruction) -> None:
    size = 8 if ins.rex_w else 4
    value = cpu.operand(ins, size)
    count = cpu.regs[GPR[ins.vvvv or 0]] & 8 * size - 1
    if ins.prefix == 0x66:
        value <<= count
    else:
        if ins.prefix == 0xF3 and value >> 8 * size - 1:
            value -= 1 << 8 * size
        value >>= count
    cpu.set_register(ins.reg, value, size)


@assists("rorx", MAP_0F3A, 0xF0, prefix=0xF2, vex=True)
def _rorx(cpu: Cpu, ins: Instruction) -> None:
    size = 8 if ins.rex_w else 4
    value, count = cpu.operand(ins, size), ins.immediate & 8 * size - 1
    cpu.set_register(ins.reg, value >> count | value << 8 * size - count, size)


@assists("mulx", MAP_0F38, 0xF6, prefix=0xF2, vex=True)
def _mulx(cpu: Cpu, ins: Instruction) -> None:
    size = 8 if ins.rex_w else 4
    product = (cpu.regs[abi.RDX] & (1 << 8 * size) - 1) * cpu.operand(ins, size)
    cpu.set_register(ins.vvvv or 0, product & (1 << 8 * size) - 1, size)
    cpu.set_register(ins.reg, product >> 8 * size, size)


@assists("adcx", MAP_0F38, 0xF6, prefix=0x66)
@assists("adox", MAP_0F38, 0xF6, prefix=0xF3)
def _add_with_one_carry(cpu: Cpu, ins: Instruction) -> None:
    size = 8 if ins.rex_w else 4
    flag = CF if ins.prefix == 0x66 else OF
    left = cpu.regs[GPR[ins.reg]] & (1 << 8 * size) - 1
    total = left + cpu.operand(ins, size) + bool(cpu.regs[abi.RFLAGS] & flag)
    cpu.set_register(ins.reg, total, size)
    cpu.set_flags(flag, flag if total >> 8 * size else 0)
