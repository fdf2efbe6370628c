"""What the kernel is told: e820, boot_params, PVH start info, command line."""

from __future__ import annotations

import itertools
import struct

import pytest

from vmm import layout
from vmm.boot import cmdline, e820, pvh, zeropage
from vmm.errors import ConfigError

GIB = 1 << 30


@pytest.mark.parametrize("memory_bytes", [16 << 20, GIB, 3 * GIB, 3 * GIB + 4096, 8 * GIB])
def test_memory_map(memory_bytes: int) -> None:
    entries = e820.memory_map(memory_bytes)
    for (gpa, size, _), (following, _, _) in itertools.pairwise(entries):
        assert gpa + size <= following
    usable = sum(size for _, size, kind in entries if kind == e820.RAM)
    assert usable == memory_bytes - layout.HIGH_RAM + layout.EBDA
    regions = layout.ram_regions(memory_bytes)
    for gpa, size, kind in entries:
        if (gpa, size, kind) != (layout.PCI_ECAM, layout.PCI_ECAM_SIZE, e820.RESERVED):
            assert any(start <= gpa and gpa + size <= start + length for start, length in regions)


def test_memory_map_around_the_hole() -> None:
    assert e820.memory_map(4 * GIB) == [
        (0, 0x9_FC00, e820.RAM),
        (0x9_FC00, 0x400, e820.RESERVED),
        (0xE_0000, 0x2_0000, e820.ACPI),
        (0x10_0000, 0xC000_0000 - 0x10_0000, e820.RAM),
        (0xE000_0000, 0x10_0000, e820.RESERVED),
        (0x1_0000_0000, GIB, e820.RAM),
    ]


def test_boot_params() -> None:
    header = bytearray(zeropage.synthetic_header())
    header[0x211 - 0x1F1] |= zeropage.KASLR_FLAG
    memory_map = e820.memory_map(4 * GIB)
    page = zeropage.build(bytes(header), memory_map=memory_map, initrd=(0x4000_0000, 1234), rsdp=0xE_0000)
    assert len(page) == layout.PAGE
    assert page[0x1E8] == 6
    assert [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(6)] == memory_map
    assert page[0x2D0 + 120 :] == bytes(layout.PAGE - 0x2D0 - 120)
    assert struct.unpack_from("<Q", page, 0x070) == (0xE_0000,)
    assert struct.unpack_from("<II", page, 0x218) == (0x4000_0000, 1234)
    assert struct.unpack_from("<I", page, 0x228) == (layout.COMMAND_LINE,)
    assert struct.unpack_from("<HH4sH", page, 0x1FE) == (0xAA55, 0x6AEB, b"HdrS", 0x20F)
    assert page[0x210] == 0xFF
    assert page[0x211] == 1  # LOADED_HIGH, and nobody moved the kernel
    assert page[0x1EF] == 0  # the sentinel: this is no stale sector


@pytest.mark.parametrize("initrd", [(0x300_0000, 77), (0, 0)])
def test_pvh_start_info(initrd: tuple[int, int]) -> None:
    memory_map = e820.memory_map(4 * GIB)
    info = pvh.start_info(memory_map=memory_map, initrd=initrd, rsdp=0xE_0000)
    assert layout.PVH_START_INFO + len(info) <= layout.ZERO_PAGE
    magic, version, flags, modules, module_list, command_line, rsdp, map_at, map_size, reserved = struct.unpack_from(
        "<IIIIQQQQII", info
    )
    assert (magic, version, flags, reserved) == (0x336EC578, 1, 0, 0)
    assert (command_line, rsdp) == (layout.COMMAND_LINE, 0xE_0000)
    assert modules == (initrd[1] > 0)
    if modules:
        assert struct.unpack_from("<4Q", info, module_list - layout.PVH_START_INFO) == (*initrd, 0, 0)
    at = map_at - layout.PVH_START_INFO
    assert [struct.unpack_from("<QQI", info, at + 24 * index) for index in range(map_size)] == memory_map


def test_command_line_is_joined_so_that_the_user_wins() -> None:
    assert cmdline.join(["console=ttyS0", "", "panic=-1"], " panic=5 -- -s ") == "console=ttyS0 panic=-1 panic=5 -- -s"
    assert cmdline.join([], "") == ""


def test_command_line_in_bytes() -> None:
    assert cmdline.encode("", 2047) == b"\0"
    assert cmdline.encode("name=é", 2047) == "name=é\0".encode()
    assert cmdline.encode("x" * 2047, 2047) == b"x" * 2047 + b"\0"
    with pytest.raises(ConfigError, match="NUL character"):
        cmdline.encode("a\0b", 2047)
    with pytest.raises(ConfigError, match="2048 bytes long, this kernel takes 2047") as caught:
        cmdline.encode("é" * 1024, 2047)
    assert caught.value.fix == "shorten it by 1 bytes"
