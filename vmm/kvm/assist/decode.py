"""A decoder for the instructions that software KVM leaves out: prefixes, opcode, ModRM, and the memory operand.

64-bit mode only (Intel SDM 2, chapter 2). It looks at 15 bytes at the most, wherever they come from.
"""

from __future__ import annotations

from vmm.kvm import abi

#: Index into `Vcpu.regs` of each register in the order of the instruction encoding.
GPR = (
    *(abi.RAX, abi.RCX, abi.RDX, abi.RBX, abi.RSP, abi.RBP, abi.RSI, abi.RDI),
    *range(abi.R8, abi.R15 + 1),
)

_SEGMENT_PREFIXES = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_NO_MODRM = {(0, 0xCC), (0, 0xCD), (0, 0x9B), (1, 0x05), (1, 0x07), (1, 0x0B)}
_IMM8 = {(0, 0xCD)}
MAP_PRIMARY, MAP_0F, MAP_0F38, MAP_0F3A = range(4)


class Undecodable(Exception):
    """The bytes are no instruction of the kind that this decoder knows."""


class Instruction:
    """One decoded instruction.

    =================  ==========================================================================
    `length`           bytes in all
    `opcode_map`       0 one-byte, 1 `0F`, 2 `0F 38`, 3 `0F 3A`; VEX-encoded or not
    `prefix`           the mandatory prefix: 0, 0x66, 0xF2 or 0xF3
    `rex_w`            64-bit operands
    `has_rex`          a REX prefix is there: byte registers 4 … 7 are SPL … DIL, not AH … BH
    `operand16`        an operand-size prefix stands anywhere before the opcode
    `reg`, `rm`        the ModRM fields, extended by REX/VEX; `rm` of a memory operand is None
    `vvvv`             the extra register of a VEX instruction, None without VEX
    `address`          of the memory operand, before the segment base; None for a register
    `segment`          the segment whose base applies ("fs", "gs", …; "" = flat)
    `immediate`        the trailing imm8, where the instruction has one
    =================  ==========================================================================
    """

    __slots__ = (
        "address",
        "has_rex",
        "immediate",
        "length",
        "modrm",
        "opcode",
        "opcode_map",
        "operand16",
        "prefix",
        "reg",
        "rex_w",
        "rm",
        "segment",
        "vvvv",
    )

    rm: int | None
    address: int | None

    def __init__(self, code: bytes, regs: memoryview) -> None:
        """Decode the instruction at the start of *code* with the register values *regs*.

        Raises:
            Undecodable: it is not one of the kind known here, or *code* ends in the midst of it.
        """
        try:
            self._decode(code[:15], regs)
        except IndexError:
            raise Undecodable from None

    def _decode(self, code: bytes, regs: memoryview) -> None:
        at, rex, short_address = 0, 0, False
        self.prefix, self.segment, self.operand16 = 0, "", False
        self.vvvv: int | None = None
        self.has_rex = False
        while True:
            byte = code[at]
            if byte in (0xF2, 0xF3) or (byte == 0x66 and not self.prefix):
                self.prefix = byte
            elif byte in _SEGMENT_PREFIXES:
                self.segment = _SEGMENT_PREFIXES[byte]
            elif byte == 0x67:
                short_address = True
            elif byte != 0x66:  # none of these instructions may be locked
                break
            self.operand16 = self.operand16 or byte == 0x66
            at += 1
        if code[at] in (0xC4, 0xC5):
            if self.prefix:
                raise Undecodable
            at, rex = self._vex(code, at)
        else:
            if code[at] & 0xF0 == 0x40:
                rex = code[at]
                self.has_rex = True
                at += 1
            at = self._opcode_map(code, at)
        self.rex_w = bool(rex & 8)
        self.opcode = code[at]
        at += 1
        if (self.opcode_map, self.opcode) in _NO_MODRM:
            self.modrm = self.reg = 0
            self.rm = self.address = None
        else:
            at = self._operands(code, at, rex, regs)
        self.immediate = 0
        if self.opcode_map == MAP_0F3A or (self.opcode_map, self.opcode) in _IMM8:
            self.immediate = code[at]
            at += 1
        self.length = at
        if self.address is not None:
            if self.modrm & 0xC7 == 0x05:  # RIP-relative: from the end of the instruction
                self.address += regs[abi.RIP] + at
            self.address &= 0xFFFF_FFFF if short_address else (1 << 64) - 1

    def _opcode_map(self, code: bytes, at: int) -> int:
        self.opcode_map = MAP_PRIMARY
        if code[at] == 0x0F:
            self.opcode_map = {0x38: MAP_0F38, 0x3A: MAP_0F3A}.get(code[at + 1], MAP_0F)
            at += 1 if self.opcode_map == MAP_0F else 2
        return at

    def _vex(self, code: bytes, at: int) -> tuple[int, int]:
        """Intel SDM 2A §2.3.5: the VEX prefix at *at*; gives where the opcode is, and the REX bits it stands for."""
        first = code[at + 1]
        rex = 0 if first & 0x80 else 4
        if code[at] == 0xC5:
            self.opcode_map, last = MAP_0F, first
            at += 2
        else:
            self.opcode_map, last = first & 0x1F, code[at + 2]
            if not 1 <= self.opcode_map <= 3:
                raise Undecodable
            rex |= (0 if first & 0x40 else 2) | (0 if first & 0x20 else 1) | (8 if last & 0x80 else 0)
            at += 3
        if last & 4:
            raise Undecodable  # 256-bit vectors
        self.prefix = (0, 0x66, 0xF3, 0xF2)[last & 3]
        self.vvvv = ~last >> 3 & 15
        return at, rex

    def _operands(self, code: bytes, at: int, rex: int, regs: memoryview) -> int:
        modrm = self.modrm = code[at]
        at += 1
        mode, rm = modrm >> 6, modrm & 7
        self.reg = modrm >> 3 & 7 | (rex & 4) << 1
        if mode == 3:
            self.rm, self.address = rm | (rex & 1) << 3, None
            return at
        address = 0
        if rm == 4:
            sib = code[at]
            at += 1
            base, index = sib & 7, sib >> 3 & 7 | (rex & 2) << 2
            if index != 4:
                address = regs[GPR[index]] << (sib >> 6)
            no_base = base == 5 and mode == 0
            if not no_base:
                address += regs[GPR[base | (rex & 1) << 3]]
        else:
            no_base = rm == 5 and mode == 0
            if not no_base:
                address = regs[GPR[rm | (rex & 1) << 3]]
        size = 4 if no_base else (0, 1, 4)[mode]
        if at + size > len(code):
            raise Undecodable
        address += int.from_bytes(code[at : at + size], "little", signed=True)
        self.rm, self.address = None, address
        return at + size
