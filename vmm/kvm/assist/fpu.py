"""The assisted instructions on x87, SSE and extended state.

XSAVE and XRSTOR are here in the standard format alone; kernels are told that there is no other (`linux.py`). Ring 3
uses whatever vector registers the host has, however little the guest is told of, so a kernel that did not save all of
them would mix up those of its programs.

===========  =====================================================
offset       the standard format (Intel SDM 1 §13.4)
===========  =====================================================
0            x87 (bit 0): control, status, instruction and operand
24           MXCSR and its mask (bits 1 and 2)
32           x87 (bit 0): ST0 … ST7
160          SSE (bit 1): XMM0 … XMM15
512          header: XSTATE_BV, XCOMP_BV, zeros to 576
from 576     each further component where CPUID leaf 0xD says
===========  =====================================================
"""

from __future__ import annotations

import struct

from vmm.kvm import abi
from vmm.kvm.assist.decode import MAP_0F, MAP_PRIMARY, Instruction
from vmm.kvm.assist.instructions import Cpu, assists
from vmm.kvm.assist.paging import VECTOR_GP, GuestException, read_linear, write_linear

_VECTOR_UD, _VECTOR_MF = 6, 16
_CR4_OSXSAVE = 1 << 18
_MXCSR_MASK = 0xFFBF  # of a processor that tells none (Intel SDM 1 §11.6.6)
_SSE, _AVX = 1 << 1, 1 << 2
_MXCSR = slice(24, 32)
_LEGACY = {0: (slice(0, 24), slice(32, 160)), 1: (slice(160, 416),)}
_HEADER, _HEADER_END = 512, 576
_unpack_header = struct.Struct("<QQQ").unpack_from


@assists("fwait", MAP_PRIMARY, 0x9B)
def _fwait(cpu: Cpu, _: Instruction) -> None:
    fpu = cpu.vcpu.get_fpu()
    if fpu.fsw & ~fpu.fcw & 0x3F:
        raise GuestException(_VECTOR_MF)


@assists("fnclex", MAP_PRIMARY, 0xDB, modrm=0xE2)
def _fnclex(cpu: Cpu, _: Instruction) -> None:
    fpu = cpu.vcpu.get_fpu()
    fpu.fsw &= 0x7F00
    cpu.vcpu.set_fpu(fpu)


@assists("ldmxcsr", MAP_0F, 0xAE, prefix=0, reg=2)
def _ldmxcsr(cpu: Cpu, ins: Instruction) -> None:
    value = int.from_bytes(read_linear(cpu.memory, cpu.sregs, cpu.linear(ins), 4), "little")
    area = cpu.vcpu.get_xsave()
    _check_mxcsr(value, area)
    area.mxcsr = value
    area.xstate_bv |= _SSE
    cpu.vcpu.set_xsave(area)


@assists("stmxcsr", MAP_0F, 0xAE, prefix=0, reg=3)
def _stmxcsr(cpu: Cpu, ins: Instruction) -> None:
    mxcsr: int = cpu.vcpu.get_xsave().mxcsr
    write_linear(cpu.memory, cpu.sregs, cpu.linear(ins), mxcsr.to_bytes(4, "little"))


@assists("xgetbv", MAP_0F, 0x01, prefix=0, modrm=0xD0)
def _xgetbv(cpu: Cpu, _: Instruction) -> None:
    regs, xcr0 = cpu.regs, _xcr0(cpu)
    index = regs[abi.RCX] & 0xFFFF_FFFF
    if index > 1:
        raise GuestException(VECTOR_GP, 0)
    value = xcr0 & cpu.vcpu.get_xsave().xstate_bv if index else xcr0
    regs[abi.RAX], regs[abi.RDX] = value & 0xFFFF_FFFF, value >> 32


@assists("xsave", MAP_0F, 0xAE, prefix=0, reg=4)
def _xsave(cpu: Cpu, ins: Instruction) -> None:
    """Intel SDM 1 §13.7."""
    wanted, linear = _operands(cpu, ins)
    area = cpu.vcpu.get_xsave()
    state = bytes(area)
    pieces = _pieces(cpu, wanted)
    if wanted & (_SSE | _AVX):
        pieces.append(_MXCSR)
    image = bytearray(read_linear(cpu.memory, cpu.sregs, linear, _end(pieces)))
    for piece in pieces:
        image[piece] = state[piece]
    before, _, _ = _unpack_header(image, _HEADER)
    struct.pack_into("<Q", image, _HEADER, before & ~wanted | area.xstate_bv & wanted)
    write_linear(cpu.memory, cpu.sregs, linear, bytes(image))


@assists("xrstor", MAP_0F, 0xAE, prefix=0, reg=5)
def _xrstor(cpu: Cpu, ins: Instruction) -> None:
    """Intel SDM 1 §13.8.1: a component that XSTATE_BV leaves out goes to its initial state, MXCSR is always loaded."""
    wanted, linear = _operands(cpu, ins)
    present, compaction, reserved = _unpack_header(read_linear(cpu.memory, cpu.sregs, linear + _HEADER, 24))
    if present & ~_xcr0(cpu) or compaction or reserved:
        raise GuestException(VECTOR_GP, 0)
    pieces = _pieces(cpu, wanted & present)
    image = read_linear(cpu.memory, cpu.sregs, linear, _end(pieces))
    area = cpu.vcpu.get_xsave()
    state = memoryview(area).cast("B")
    for absent in _pieces(cpu, wanted & _SSE & ~present):
        state[absent] = bytes(absent.stop - absent.start)
    for piece in pieces:
        state[piece] = image[piece]
    area.xstate_bv = area.xstate_bv & ~wanted | present & wanted
    if wanted & (_SSE | _AVX):
        mxcsr = int.from_bytes(image[24:28], "little")
        _check_mxcsr(mxcsr, area)
        area.mxcsr = mxcsr
        area.xstate_bv |= _SSE  # or KVM would not take MXCSR
    cpu.vcpu.set_xsave(area)


def _operands(cpu: Cpu, ins: Instruction) -> tuple[int, int]:
    """The components that the instruction is for, and where its memory image is.

    Raises:
        GuestException: the guest has not enabled XSAVE, or the image is not aligned.
    """
    linear, xcr0 = cpu.linear(ins), _xcr0(cpu)
    if linear % 64:
        raise GuestException(VECTOR_GP, 0)
    return xcr0 & (cpu.regs[abi.RDX] << 32 | cpu.regs[abi.RAX] & 0xFFFF_FFFF), linear


def _xcr0(cpu: Cpu) -> int:
    if not cpu.sregs.cr4 & _CR4_OSXSAVE:
        raise GuestException(_VECTOR_UD)
    return cpu.vcpu.get_xcr0()


def _pieces(cpu: Cpu, components: int) -> list[slice]:
    """Where in the standard format *components* are, without MXCSR."""
    pieces = [piece for bit, places in _LEGACY.items() if components >> bit & 1 for piece in places]
    for bit in range(2, 63):
        if components >> bit & 1:
            size, start = cpu.vcpu.xsave_component(bit)
            pieces.append(slice(start, start + size))
    return pieces


def _end(pieces: list[slice]) -> int:
    return max(_HEADER_END, *(piece.stop for piece in pieces)) if pieces else _HEADER_END


def _check_mxcsr(value: int, area: abi.kvm_xsave) -> None:
    if value & ~(area.mxcsr_mask or _MXCSR_MASK):
        raise GuestException(VECTOR_GP, 0)
