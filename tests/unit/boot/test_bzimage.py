from __future__ import annotations

import struct

import pytest

from tests.fakes import kernels
from tests.fakes.kernels import LOAD
from vmm.boot import bzimage
from vmm.errors import ConfigError

CONTENT = kernels.payload("gzip", kernels.vmlinux())


def parse(data: bytes) -> bzimage.BzImage:
    return bzimage.parse(memoryview(data), "bzImage")


def patched(offset: int, form: str, *values: int) -> bytes:
    data = bytearray(kernels.bzimage(CONTENT))
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


def test_header() -> None:
    image = parse(kernels.bzimage(CONTENT))
    assert image.version == "6.1.0-test"
    assert bytes(image.payload) == CONTENT
    assert (image.cmdline_max, image.initrd_max) == (2047, 0x7FFF_FFFF)
    assert image.header[0x202 - 0x1F1 :][:4] == b"HdrS"
    assert len(image.header) == 0x26C - 0x1F1
    assert image.compression == "gzip"


def test_own_entry() -> None:
    data = kernels.bzimage(CONTENT, init_size=0x80_0000)
    kernel = parse(data).load()
    assert [(gpa, bytes(piece)) for gpa, piece in kernel.pieces] == [(LOAD, data[3 * 512 :])]
    assert kernel.entry == LOAD + 0x200
    assert kernel.end == LOAD + 0x80_0000
    assert struct.unpack_from("<I", kernel.init_header, 0x214 - 0x1F1) == (LOAD,)


def test_what_is_appended_is_not_loaded() -> None:
    data = kernels.bzimage(CONTENT)
    ((_, piece),) = parse(data + b"a signature").load().pieces
    assert bytes(piece) == data[3 * 512 :]


@pytest.mark.parametrize("release", [b"", b"\xff\xfe", b"6.1\x1b[2J"])
def test_no_sensible_version(release: bytes) -> None:
    assert parse(kernels.bzimage(CONTENT, release=release)).version == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (kernels.bzimage(CONTENT)[:0x240], "truncated: shorter than its header"),
        (kernels.bzimage(CONTENT)[:2000], "truncated: 2000 bytes, its header says"),
        (kernels.bzimage(CONTENT)[:-16], "truncated"),
        (kernels.bzimage(CONTENT, version=0x20B), "boot protocol 2.11, 2.12 is needed"),
        (kernels.bzimage(CONTENT, xloadflags=0), "a 32-bit x86 kernel"),
        (patched(0x201, "<B", 0x40), "header ends at 0x242 already"),
        (patched(0x211, "<B", 0), "a 32-bit x86 kernel"),
        (patched(0x1F4, "<I", 0), "truncated"),
        (patched(0x24C, "<I", 0xFFFF_FFFF), "its payload ends at"),
        (patched(0x248, "<I", 0xFFFF_FFFF), "its payload ends at"),
        (patched(0x230, "<I", 0), "an alignment of 0x0"),
        (patched(0x258, "<Q", LOAD + 1), "a load address of 0x1000001"),
        (patched(0x258, "<Q", 0), "asks for memory at 0x0"),
        (patched(0x260, "<I", 0xFFFF_FFFF), "asks for memory at 0x1000000\\+0xffffffff"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(data)
    assert caught.value.where == "bzImage"
