"""The PVH boot protocol (Xen `public/arch-x86/hvm/start_info.h`, `docs/misc/pvh.pandoc`).

`hvm_start_info`, version 1, 56 bytes; `hvm_modlist_entry`, 32 bytes; `hvm_memmap_table_entry`, 24 bytes.
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.boot.plan import EntryState, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.boot.plan import Piece

_MAGIC = 0x336E_C578  # "xEn3" with the top bit of the "E" set
_START_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")
_CR0_PE, _CR0_ET = 1 << 0, 1 << 4

_CODE, _DATA, _TASK = 0x08, 0x10, 0x18
_GDT = struct.pack("<4Q", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067)


def start_info(*, memory_map: Sequence[tuple[int, int, int]], initrd: tuple[int, int], rsdp: int) -> bytes:
    """`hvm_start_info` with its lists behind it, for `layout.PVH_START_INFO`.

    *initrd* is `(gpa, size)`, the size 0 for none; *rsdp* 0 without ACPI; *memory_map* has at most 160 entries.
    """
    modules = layout.PVH_START_INFO + _START_INFO.size
    map_entries = modules + _MODULE.size
    present = int(initrd[1] > 0)
    info = _START_INFO.pack(
        _MAGIC, 1, 0, present, modules * present, layout.COMMAND_LINE, rsdp, map_entries, len(memory_map), 0
    )
    info += _MODULE.pack(*initrd, 0, 0)
    return info + b"".join(_MAP_ENTRY.pack(*entry, 0) for entry in memory_map)


def entry(rip: int) -> tuple[list[Piece], EntryState]:
    """Pieces (GDT) and registers to enter *rip*: 32-bit protected mode, flat, no paging, RBX the start info."""
    state = EntryState(
        rip=rip,
        rbx=layout.PVH_START_INFO,
        rsp=layout.BOOT_STACK_TOP,
        cr0=_CR0_PE | _CR0_ET,
        code=Segment(_CODE, 0xB, db=1),
        data=Segment(_DATA, 0x3, db=1),
        task=Segment(_TASK, 0xB, limit=0x67, s=0),
        gdt_base=layout.BOOT_GDT,
        gdt_limit=len(_GDT) - 1,
    )
    return [(layout.BOOT_GDT, _GDT)], state
