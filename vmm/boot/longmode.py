"""The CPU state of the 64-bit Linux entry: long mode, paging on, the first 4 GiB mapped to themselves.

Boot page tables, all of them below the boot stack:

======================  ===========================================================
`BOOT_PAGE_TABLES`      PML4, one entry
`+ 0x1000`              PDPT, four entries
`+ 0x2000 … + 0x5000`   four page directories of 512 pages of 2 MiB each
======================  ===========================================================

1 GiB pages would need one page only, but not every CPU has them.
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.boot.plan import EntryState, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boot.plan import Piece

_CR0_PE, _CR0_ET, _CR0_PG = 1 << 0, 1 << 4, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_PRESENT_WRITABLE, _PRESENT_WRITABLE_LARGE = 0x03, 0x83
_LARGE_PAGE = 0x20_0000

# x86 boot.rst, "64-bit Boot Protocol": __BOOT_CS is 0x10, __BOOT_DS is 0x18.
_CODE, _DATA, _TASK = 0x10, 0x18, 0x20
_GDT = struct.pack("<6Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0)


def entry(rip: int, boot_params: int) -> tuple[list[Piece], EntryState]:
    """Pieces (GDT, page tables) and registers to enter *rip* with *boot_params* in RSI (x86 boot.rst, "64-bit")."""
    state = EntryState(
        rip=rip,
        rsi=boot_params,
        rsp=layout.BOOT_STACK_TOP,
        cr0=_CR0_PE | _CR0_ET | _CR0_PG,
        cr3=layout.BOOT_PAGE_TABLES,
        cr4=_CR4_PAE,
        efer=_EFER_LME | _EFER_LMA,
        code=Segment(_CODE, 0xB, code64=1),
        data=Segment(_DATA, 0x3, db=1),
        task=Segment(_TASK, 0xB, limit=0x67, s=0),
        gdt_base=layout.BOOT_GDT,
        gdt_limit=len(_GDT) - 1,
    )
    return [(layout.BOOT_GDT, _GDT), (layout.BOOT_PAGE_TABLES, _identity_map())], state


def _identity_map() -> bytes:
    pdpt = layout.BOOT_PAGE_TABLES + layout.PAGE
    directories = [pdpt + layout.PAGE * (1 + gib) for gib in range(4)]
    tables = struct.pack("<Q4088x", pdpt | _PRESENT_WRITABLE)
    tables += struct.pack("<4Q4064x", *(gpa | _PRESENT_WRITABLE for gpa in directories))
    pages = range(_PRESENT_WRITABLE_LARGE, layout.ABOVE_4G, _LARGE_PAGE)
    return tables + struct.pack("<2048Q", *pages)
