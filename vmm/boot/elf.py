"""ELF kernels: x86-64 executables, loaded by physical address (System V ABI gABI ch. 4 and 5)."""

from __future__ import annotations

import struct

from vmm import layout
from vmm.boot.plan import LoadedKernel
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boot.plan import Piece

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_ET_EXEC = 2
_TYPES = {1: "an ELF relocatable object (.o, .ko)", 3: "an ELF shared library or program", 4: "an ELF core dump"}
_EM_X86_64 = 62
_MACHINES = {
    2: "SPARC", 3: "32-bit x86 (i386)", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "IBM S/390",
    40: "32-bit ARM", 43: "64-bit SPARC", 183: "ARM64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
_XEN_ELFNOTE_PHYS32_ENTRY = 18
_NOTES_MAX = 0x1_0000  # bytes looked at, over all PT_NOTE segments


class Segment:
    """One PT_LOAD with something in it: *size* bytes at *offset* of the file go to *gpa*, zeros up to *memory_size*."""

    __slots__ = ("gpa", "memory_size", "offset", "size")

    def __init__(self, gpa: int, offset: int, size: int, memory_size: int) -> None:
        self.gpa, self.offset, self.size, self.memory_size = gpa, offset, size, memory_size


class ElfImage:
    """A kernel that `parse` found sound.

    *segments* ascend, do not overlap, and lie between `layout.HIGH_RAM` and `layout.LOW_RAM_END`; *pvh_entry* is
    the address in the Xen note, or None; *is_linux* tells whether a note of Linux's own says so.
    """

    __slots__ = ("data", "entry", "is_linux", "pvh_entry", "segments")

    def __init__(
        self, data: memoryview, entry: int, segments: list[Segment], pvh_entry: int | None, is_linux: bool
    ) -> None:
        self.data, self.entry, self.segments = data, entry, segments
        self.pvh_entry, self.is_linux = pvh_entry, is_linux

    def has_code_at(self, gpa: int) -> bool:
        """Whether *gpa* is in the file-backed part of a segment."""
        return any(s.gpa <= gpa < s.gpa + s.size for s in self.segments)

    def load(self, entry: int, init_header: bytes) -> LoadedKernel:
        """The segments as pieces (views of the file), to be entered at *entry*."""
        pieces: list[Piece] = [(s.gpa, self.data[s.offset : s.offset + s.size]) for s in self.segments if s.size]
        last = self.segments[-1]
        return LoadedKernel(pieces, last.gpa + last.memory_size, entry, init_header)


def parse(data: memoryview, where: str) -> ElfImage:
    """The x86-64 kernel in *data*, of which every number is checked.

    Raises: `ConfigError` (at *where*) for anything else: another machine, a program, a truncated file.
    """
    _check_identity(data, where)
    _, type_, machine, _, entry, phoff, _, _, _, phentsize, phnum, *_ = _HEADER.unpack_from(data)
    if machine != _EM_X86_64:
        raise ConfigError(f"an ELF file for {_MACHINES.get(machine, f'machine {machine}')}, not for x86-64",
                          where=where, fix="give an x86-64 kernel")  # fmt: skip
    if type_ != _ET_EXEC:
        raise ConfigError(f"{_TYPES.get(type_, f'an ELF file of type {type_}')}, not a kernel", where=where,
                          fix="give a bzImage or a vmlinux")  # fmt: skip
    if phentsize != _PROGRAM_HEADER.size or phnum == 0:
        raise ConfigError("the ELF file has no program headers", where=where)
    if phoff + phnum * phentsize > len(data):
        raise ConfigError("the ELF file is truncated: its program headers are cut off", where=where)
    headers = [_PROGRAM_HEADER.unpack_from(data, phoff + index * phentsize) for index in range(phnum)]
    if any(header[0] == _PT_INTERP for header in headers):
        raise ConfigError("an ELF program of this system, not a kernel", where=where,
                          fix="give a bzImage or a vmlinux")  # fmt: skip
    segments = _segments(data, headers, where)
    pvh_entry, is_linux = _notes(data, headers)
    return ElfImage(data, entry, segments, pvh_entry, is_linux)


def _check_identity(data: memoryview, where: str) -> None:
    if len(data) < _HEADER.size:
        raise ConfigError("the ELF file is truncated: shorter than its header", where=where)
    if data[:4] != MAGIC:
        raise ConfigError("not an ELF file", where=where)
    if data[5] != 1:
        raise ConfigError("a big-endian ELF file: a kernel for another architecture", where=where,
                          fix="give an x86-64 kernel")  # fmt: skip
    if data[4] != 2:
        machine = int.from_bytes(data[18:20], "little")
        raise ConfigError(f"a 32-bit ELF file for {_MACHINES.get(machine, f'machine {machine}')}", where=where,
                          fix="give an x86-64 kernel")  # fmt: skip


def _segments(data: memoryview, headers: list[tuple[int, ...]], where: str) -> list[Segment]:
    segments: list[Segment] = []
    for type_, _, offset, _, gpa, size, memory_size, _ in sorted(headers, key=lambda header: header[4]):
        if type_ != _PT_LOAD or memory_size == 0:
            continue
        if size > memory_size:
            raise ConfigError(f"the segment at {gpa:#x} has more bytes in the file than in memory", where=where)
        if offset + size > len(data):
            raise ConfigError(f"the ELF file is truncated: {len(data)} bytes, the segment at {gpa:#x} ends at "
                              f"{offset + size}", where=where)  # fmt: skip
        if gpa < layout.HIGH_RAM or gpa + memory_size > layout.LOW_RAM_END:
            raise ConfigError(f"the segment at physical {gpa:#x}+{memory_size:#x} is not between "
                              f"{layout.HIGH_RAM:#x} and {layout.LOW_RAM_END:#x}", where=where,
                              fix="link the kernel to physical addresses from 1 MiB to 3 GiB")  # fmt: skip
        if segments and gpa < segments[-1].gpa + segments[-1].memory_size:
            raise ConfigError(f"the segments at {segments[-1].gpa:#x} and {gpa:#x} overlap", where=where)
        segments.append(Segment(gpa, offset, size, memory_size))
    if not segments:
        raise ConfigError("the ELF file has nothing to load", where=where)
    return segments


def _notes(data: memoryview, headers: list[tuple[int, ...]]) -> tuple[int | None, bool]:
    """The PVH entry and whether there is a note of Linux; notes that make no sense end the search."""
    pvh_entry, is_linux, budget = None, False, _NOTES_MAX
    for type_, _, offset, _, _, size, _, alignment in headers:
        if type_ != _PT_NOTE:
            continue
        align = 8 if alignment == 8 else 4
        position, end = offset, min(offset + min(size, budget), len(data))
        budget -= max(end - position, 0)
        while position + _NOTE.size <= end:
            name_size, desc_size, note_type = _NOTE.unpack_from(data, position)
            name_at = position + _NOTE.size
            desc_at = -(-(name_at + name_size) // align) * align
            position = -(-(desc_at + desc_size) // align) * align
            if desc_at + desc_size > end:
                break
            name = bytes(data[name_at : min(name_at + name_size, name_at + 8)])
            is_linux |= name == b"Linux\0"
            if name == b"Xen\0" and note_type == _XEN_ELFNOTE_PHYS32_ENTRY and desc_size in (4, 8):
                pvh_entry = int.from_bytes(data[desc_at : desc_at + desc_size], "little")
    return pvh_entry, is_linux
