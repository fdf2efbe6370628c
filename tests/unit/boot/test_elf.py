from __future__ import annotations

import struct

import pytest

from tests.fakes import kernels
from tests.fakes.kernels import LOAD
from vmm.boot import elf
from vmm.errors import ConfigError


def parse(data: bytes) -> elf.ElfImage:
    return elf.parse(memoryview(data), "vmlinux")


def test_segments_and_bss() -> None:
    image = parse(kernels.elf([(LOAD + 0x1000, b"later", 0x2000), (LOAD, b"first", 5)]))
    kernel = image.load(LOAD, b"")
    assert [(gpa, bytes(data)) for gpa, data in kernel.pieces] == [(LOAD, b"first"), (LOAD + 0x1000, b"later")]
    assert kernel.end == LOAD + 0x3000
    assert kernel.entry == LOAD


def test_segment_of_bss_only() -> None:
    kernel = parse(kernels.elf([(LOAD, b"text", 4), (LOAD + 0x1000, b"", 0x1000)])).load(LOAD, b"")
    assert len(kernel.pieces) == 1
    assert kernel.end == LOAD + 0x2000


def test_entry_is_in_a_segment() -> None:
    image = parse(kernels.elf([(LOAD, b"text", 0x1000)]))
    assert image.has_code_at(LOAD + 3)
    assert not image.has_code_at(LOAD + 4)  # BSS


@pytest.mark.parametrize("desc", [struct.pack("<I", LOAD + 8), struct.pack("<Q", LOAD + 8)])
def test_pvh_note(desc: bytes) -> None:
    notes = kernels.note(b"GNU\0", 3, b"build id of 20 bytes") + kernels.note(b"Xen\0", 18, desc)
    image = parse(kernels.elf(notes=notes))
    assert image.pvh_entry == LOAD + 8
    assert not image.is_linux


def test_linux_note() -> None:
    image = parse(kernels.vmlinux(pvh=False))
    assert image.is_linux
    assert image.pvh_entry is None


@pytest.mark.parametrize("desc", [b"", b"\1\2\3"])
def test_pvh_note_of_a_wrong_size_is_none(desc: bytes) -> None:
    assert parse(kernels.elf(notes=kernels.note(b"Xen\0", 18, desc))).pvh_entry is None


def test_notes_that_claim_too_much_end_the_search() -> None:
    notes = struct.pack("<III", 4, 0xFFFF_FFFF, 18) + b"Xen\0" + kernels.pvh_note(LOAD)
    assert parse(kernels.elf(notes=notes)).pvh_entry is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (kernels.elf()[:40], "truncated: shorter than its header"),
        (kernels.elf()[:80], "truncated: its program headers are cut off"),
        (kernels.elf()[:-1], "truncated: 183 bytes, the segment at 0x1000000 ends at 184"),
        (kernels.elf(machine=183), "an ELF file for ARM64"),
        (kernels.elf(machine=999), "an ELF file for machine 999"),
        (kernels.elf(type_=1), "relocatable object"),
        (kernels.elf(type_=3), "shared library or program"),
        (kernels.elf(type_=4), "core dump"),
        (kernels.elf(interpreter=True), "an ELF program of this system"),
        (kernels.elf([]), "no program headers"),
        (kernels.elf([(LOAD, b"", 0)]), "nothing to load"),
        (kernels.elf([(LOAD, b"text", 2)]), "more bytes in the file than in memory"),
        (kernels.elf([(0x8000, b"text", 4)]), "physical 0x8000\\+0x4 is not between 0x100000 and 0xc0000000"),
        (kernels.elf([(LOAD, b"text", 1 << 40)]), "is not between"),
        (kernels.elf([(2**64 - 4, b"text", 4)]), "is not between"),
        (kernels.elf([(LOAD, b"text", 9), (LOAD + 8, b"text", 4)]), "the segments at 0x1000000 and 0x1000008 overlap"),
        (b"\x7fELF\x01\x01" + kernels.elf(machine=3)[6:], "32-bit ELF file for 32-bit x86"),
        (b"\x7fELF\x02\x02" + kernels.elf()[6:], "big-endian"),
        (b"\x7fELG" + kernels.elf()[4:], "not an ELF file"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(data)
    assert caught.value.where == "vmlinux"
