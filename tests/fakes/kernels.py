"""Synthetic kernels: ELF files and bzImages, made as Linux's own build makes them, with the real compressors."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Sequence

import lz4.block
import zstandard

LOAD = 0x100_0000
COMPRESSIONS = ("gzip", "lz4", "zstd", "xz", "lzma", "bzip2")


def note(name: bytes, type_: int, desc: bytes) -> bytes:
    """One ELF note, aligned to 4 bytes."""

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), type_) + pad(name) + pad(desc)


LINUX_NOTE = note(b"Linux\0", 0x100, b"salt")


def pvh_note(entry: int) -> bytes:
    return note(b"Xen\0", 18, struct.pack("<Q", entry))


def elf(
    segments: Sequence[tuple[int, bytes, int]] = ((LOAD, b"\xf4" * 64, 64),),
    *,
    entry: int = LOAD,
    notes: bytes = b"",
    machine: int = 62,
    type_: int = 2,
    interpreter: bool = False,
) -> bytes:
    """An ELF64 file of `(physical address, content, size in memory)` segments."""
    count = len(segments) + bool(notes) + interpreter
    offset = 64 + 56 * count
    headers, body = b"", b""
    for gpa, content, memory_size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), gpa, gpa, len(content), memory_size, 0x1000)
        body += content
    if notes:
        headers += struct.pack("<IIQQQQQQ", 4, 4, offset + len(body), 0, 0, len(notes), len(notes), 4)
        body += notes
    if interpreter:
        headers += struct.pack("<IIQQQQQQ", 3, 4, offset, 0, 0, 0, 0, 1)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<16sHHIQQQIHHHHHH", identity, type_, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + headers + body


def vmlinux(*, bss: int = 0x3000, pvh: bool = True) -> bytes:
    """What Linux looks like from outside: text, data with a BSS behind it, notes."""
    text = b"\xfa\xf4" * 0x800
    segments = [(LOAD, text, len(text)), (LOAD + 0x20_0000, b"data" * 64, 256 + bss)]
    return elf(segments, notes=LINUX_NOTE + (pvh_note(LOAD + 0x10) if pvh else b""))


def payload(compression: str, data: bytes) -> bytes:
    """*data* compressed as arch/x86/boot/compressed/Makefile does it, with the size behind it."""
    if compression == "gzip":
        return gzip.compress(data, 9)
    if compression == "lz4":
        packed = b"\x02\x21\x4c\x18"
        for start in range(0, len(data), 8 << 20):
            block = lz4.block.compress(data[start : start + (8 << 20)], mode="high_compression", store_size=False)
            packed += struct.pack("<I", len(block)) + block
    elif compression == "zstd":
        stream = zstandard.ZstdCompressor(level=3).compressobj()  # from a pipe: no content size in the frame
        packed = stream.compress(data) + stream.flush()
    elif compression == "xz":
        filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23}]
        packed = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    elif compression == "lzma":
        packed = lzma.compress(data, lzma.FORMAT_ALONE)
    elif compression == "bzip2":
        packed = bz2.compress(data)
    else:
        raise ValueError(compression)
    return packed + struct.pack("<I", len(data))


def bzimage(
    content: bytes,
    *,
    release: bytes = b"6.1.0-test (builder) #1",
    version: int = 0x20F,
    xloadflags: int = 0x7F,
    init_size: int = 0x80_0000,
    cmdline_size: int = 2047,
    initrd_max: int = 0x7FFF_FFFF,
) -> bytes:
    """A bzImage whose payload is *content*, behind 0x400 bytes of stand-in for the decompressor."""
    setup = bytearray(3 * 512)
    body = b"\x90" * 0x400 + content
    body += bytes(-len(body) % 16)
    put = struct.pack_into
    put("<BHI", setup, 0x1F1, 2, 0, len(body) // 16)
    put("<HH4sH", setup, 0x1FE, 0xAA55, 0x6AEB, b"HdrS", version)
    put("<H", setup, 0x20E, 0x300 - 0x200)
    put("<BB", setup, 0x210, 0, 1)
    put("<I", setup, 0x214, 0x10_0000)
    put("<IIBBHI", setup, 0x22C, initrd_max, 0x20_0000, 1, 21, xloadflags, cmdline_size)
    put("<II", setup, 0x248, 0x400, len(content))
    put("<QI", setup, 0x258, LOAD, init_size)
    setup[0x300 : 0x300 + len(release)] = release
    return bytes(setup) + body
