"""The entry states against the Intel SDM and boot.rst: page tables are walked, descriptors decoded."""

from __future__ import annotations

import struct

import pytest

from vmm import layout
from vmm.boot import longmode, pvh
from vmm.boot.plan import EntryState, Segment


def walk(tables: bytes, address: int) -> int:
    """Translate *address* as the CPU does with 4-level paging, through 2 MiB pages."""
    table = layout.BOOT_PAGE_TABLES
    for shift in (39, 30, 21):
        at = table - layout.BOOT_PAGE_TABLES + 8 * (address >> shift & 0x1FF)
        entry: int = struct.unpack_from("<Q", tables, at)[0]
        assert entry & 0b11 == 0b11, "present and writable"
        table = entry & 0x000F_FFFF_FFFF_F000
        if shift == 21:
            assert entry & 1 << 7, "a 2 MiB page"
            return table + (address & 0x1F_FFFF)
        assert not entry & 1 << 7, "no 1 GiB page"
    raise AssertionError


def decode(gdt: bytes, segment: Segment) -> tuple[int, ...]:
    entry: int = struct.unpack_from("<Q", gdt, segment.selector)[0]
    limit = (entry & 0xFFFF) | (entry >> 32 & 0xF_0000)
    granular = entry >> 55 & 1
    assert entry >> 47 & 1, "present"
    assert entry >> 45 & 3 == 0, "DPL 0"
    assert entry >> 16 & 0xFF_FFFF == 0
    return (
        entry >> 40 & 0xF,
        entry >> 44 & 1,
        entry >> 53 & 1,
        entry >> 54 & 1,
        granular,
        limit << 12 | 0xFFF if granular else limit,
    )


def hidden(segment: Segment) -> tuple[int, ...]:
    return segment.type, segment.s, segment.code64, segment.db, segment.granular, segment.limit


@pytest.mark.parametrize("address", [0, 0x1000, 0x10_0000, 0x100_0123, 0x7FFF_FFFF, 0xC000_0000, 0xFFFF_FFFF])
def test_the_first_four_gib_are_mapped_to_themselves(address: int) -> None:
    pieces, _ = longmode.entry(0x100_0000, layout.ZERO_PAGE)
    assert walk(bytes(dict(pieces)[layout.BOOT_PAGE_TABLES]), address) == address


def test_tables_fit_where_they_are() -> None:
    pieces, _ = longmode.entry(0x100_0000, layout.ZERO_PAGE)
    tables = dict(pieces)[layout.BOOT_PAGE_TABLES]
    assert len(tables) == 6 * layout.PAGE
    assert layout.BOOT_PAGE_TABLES + len(tables) < layout.BOOT_STACK_TOP


@pytest.mark.parametrize(
    ("pieces", "state"), [longmode.entry(0x100_0000, layout.ZERO_PAGE), pvh.entry(0x100_0000)], ids=["long64", "pvh"]
)
def test_segments_are_what_the_gdt_says(pieces: list[tuple[int, bytes]], state: EntryState) -> None:
    gdt = dict(pieces)[layout.BOOT_GDT]
    assert (state.gdt_base, state.gdt_limit) == (layout.BOOT_GDT, len(gdt) - 1)
    for segment in (state.code, state.data, state.task):
        assert decode(gdt, segment) == hidden(segment)
        assert segment.base == 0


def test_linux_entry_state() -> None:
    """boot.rst: long mode with paging, __BOOT_CS 0x10 execute/read, __BOOT_DS 0x18 read/write, RSI boot_params."""
    _, state = longmode.entry(0x100_0200, layout.ZERO_PAGE)
    assert (state.rip, state.rsi, state.rsp) == (0x100_0200, layout.ZERO_PAGE, layout.BOOT_STACK_TOP)
    assert (state.cr0, state.cr4, state.efer) == (0x8000_0011, 0x20, 0x500)
    assert state.cr3 == layout.BOOT_PAGE_TABLES
    assert (state.code.selector, state.data.selector) == (0x10, 0x18)
    assert (state.code.code64, state.code.db) == (1, 0)


def test_pvh_entry_state() -> None:
    """pvh.pandoc: protected mode without paging, CR4 zero, flat 32-bit segments, a 32-bit TSS, EBX the start info."""
    _, state = pvh.entry(0x100_0000)
    assert (state.rip, state.rbx) == (0x100_0000, layout.PVH_START_INFO)
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x11, 0, 0, 0)
    assert (state.code.code64, state.code.db, state.code.limit) == (0, 1, 0xFFFF_FFFF)
    assert (state.task.type, state.task.limit, state.task.s) == (0xB, 0x67, 0)
