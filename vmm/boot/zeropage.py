"""`struct boot_params`, the "zero page" that Linux is handed (Linux `Documentation/arch/x86/zero-page.rst`).

======  ====  ==========================================
offset  size  field
======  ====  ==========================================
0x070   8     `acpi_rsdp_addr`
0x1e8   1     `e820_entries`
0x1f1         the setup header, as the kernel image has it
0x2d0   20 n  `e820_table`: address, size, type
======  ====  ==========================================
"""

from __future__ import annotations

import struct

from vmm import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SETUP_HEADER = 0x1F1
SETUP_HEADER_END = 0x290  # the header may grow up to here
KASLR_FLAG = 1 << 1  # loadflags: the decompressor moved the kernel

_RSDP, _E820_ENTRIES, _E820_TABLE = 0x070, 0x1E8, 0x2D0
_TYPE_OF_LOADER, _LOADFLAGS, _RAMDISK, _CMD_LINE_PTR, _VID_MODE = 0x210, 0x211, 0x218, 0x228, 0x1FA
_UNKNOWN_LOADER = 0xFF
_NORMAL_MODE = 0xFFFF


def synthetic_header() -> bytes:
    """The setup header of a kernel that comes without one: a bare `vmlinux`, entered by the 64-bit protocol."""
    header = bytearray(0x26C - SETUP_HEADER)
    put = struct.pack_into
    put("<H", header, 0x1FE - SETUP_HEADER, 0xAA55)  # boot_flag
    put("<H4sH", header, 0x200 - SETUP_HEADER, 0x6AEB, b"HdrS", 0x020F)  # jump, header, version
    put("<B", header, _LOADFLAGS - SETUP_HEADER, 1)  # LOADED_HIGH
    put("<I", header, 0x22C - SETUP_HEADER, 0x7FFF_FFFF)  # initrd_addr_max
    put("<I", header, 0x230 - SETUP_HEADER, 0x20_0000)  # kernel_alignment
    put("<I", header, 0x238 - SETUP_HEADER, 2047)  # cmdline_size
    return bytes(header)


def build(
    header: bytes,
    *,
    memory_map: Sequence[tuple[int, int, int]],
    initrd: tuple[int, int],
    rsdp: int,
) -> bytes:
    """One page of `boot_params`.

    *header* is the setup header, from `SETUP_HEADER` on; *initrd* is `(gpa, size)`, (0, 0) for none, below 4 GiB;
    *memory_map* has at most 128 entries; *rsdp* is 0 without ACPI.
    """
    page = bytearray(layout.PAGE)
    put = struct.pack_into
    page[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    put("<Q", page, _RSDP, rsdp)
    put("<H", page, _VID_MODE, _NORMAL_MODE)
    page[_TYPE_OF_LOADER] = _UNKNOWN_LOADER
    page[_LOADFLAGS] &= ~KASLR_FLAG & 0xFF
    put("<II", page, _RAMDISK, *initrd)
    put("<I", page, _CMD_LINE_PTR, layout.COMMAND_LINE)
    page[_E820_ENTRIES] = len(memory_map)
    for index, entry in enumerate(memory_map):
        put("<QQI", page, _E820_TABLE + 20 * index, *entry)
    return bytes(page)
