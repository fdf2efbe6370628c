"""The payload of a bzImage, unpacked by the VMM.

Linux makes the payload with the ordinary tools and ends it with the unpacked size, four bytes (gzip's own trailer
is that already). LZ4 is the *legacy* frame format: a magic number, then blocks of 8 MiB unpacked, each behind its
packed size. That size field is a claim: the output is mapped, not filled, at that size, so a lie costs nothing.
"""

from __future__ import annotations

import mmap

from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import bz2
    import lzma
    from collections.abc import Callable

#: More than any Linux/x86 (`KERNEL_IMAGE_SIZE` is 512 MiB, 1 GiB with KASLR's room).
UNPACKED_MAX = 512 << 20

_CHUNK = 1 << 20
_LZ4_BLOCK = 8 << 20
_WINDOW_MAX = 1 << 27  # zstd -22 --ultra and xz with a 128 MiB dictionary
_MEMORY_MAX = 192 << 20


class _Output:
    """Bounded room for the unpacked bytes: anonymous memory that costs nothing before it is written."""

    def __init__(self, size: int, where: str) -> None:
        self._where = where
        self.view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.used = 0

    def append(self, data: bytes) -> None:
        end = self.used + len(data)
        if end > len(self.view):
            raise ConfigError(f"the compressed kernel is corrupt: it unpacks to more than the {len(self.view)} bytes "
                              "it says", where=self._where)  # fmt: skip
        self.view[self.used : end] = data
        self.used = end


def method(payload: memoryview) -> str | None:
    """How *payload* is compressed ("gzip", "lz4", …), or None for a format nobody here can unpack."""
    for magic, name in _MAGICS:
        if payload[: len(magic)] == magic:
            return name
    return None


def unpack(payload: memoryview, name: str, where: str) -> memoryview:
    """What the *payload*, compressed by the *name* that `method` gave, holds; at most `UNPACKED_MAX` bytes.

    Raises: `ConfigError` (at *where*) for a corrupt or truncated one.
    """
    size = int.from_bytes(payload[-4:], "little")
    if not 0 < size <= UNPACKED_MAX:
        raise ConfigError(f"the compressed kernel is corrupt: it claims to unpack to {size} bytes", where=where)
    output = _Output(size, where)
    problem = _METHODS[name](payload, output)
    if problem or output.used != size:
        reason = problem or f"it unpacks to {output.used} bytes instead of {size}"
        raise ConfigError(f"the {name}-compressed kernel is corrupt: {reason}", where=where,
                          fix="copy or build it again")  # fmt: skip
    return output.view


# Each of these fills *output* and returns what was wrong, or an empty string.


def _gzip(payload: memoryview, output: _Output) -> str:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    try:
        for start in range(0, len(payload), _CHUNK):
            data: bytes | memoryview = payload[start : start + _CHUNK]
            while data and not stream.eof:
                output.append(stream.decompress(data, _CHUNK))
                data = stream.unconsumed_tail
        output.append(stream.flush())
    except zlib.error as error:
        return str(error)
    return "" if stream.eof else "it ends too early"


def _lz4(payload: memoryview, output: _Output) -> str:
    import lz4.block

    position, end = 4, len(payload) - 4
    block_size = _LZ4_BLOCK
    while position + 4 <= end:
        if block_size != _LZ4_BLOCK:
            return "a short block is not the last"
        size = int.from_bytes(payload[position : position + 4], "little")
        position += 4
        if position + size > end:
            return "a block reaches beyond its end"
        try:
            block = lz4.block.decompress(payload[position : position + size], uncompressed_size=_LZ4_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            return str(error)
        output.append(block)
        position, block_size = position + size, len(block)
    return ""


def _zstd(payload: memoryview, output: _Output) -> str:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    try:
        with decompressor.stream_reader(payload[:-4], read_size=_CHUNK, closefd=False) as reader:
            while count := reader.readinto(output.view[output.used : output.used + _CHUNK]):
                output.used += count
            if reader.read(1):
                return "it unpacks to more than it says"
    except zstandard.ZstdError as error:
        return str(error)
    return ""


def _xz(payload: memoryview, output: _Output) -> str:
    import lzma

    try:
        return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_MAX), payload[:-4], output)
    except lzma.LZMAError as error:
        return str(error)


def _lzma(payload: memoryview, output: _Output) -> str:
    import lzma

    try:
        return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY_MAX), payload[:-4], output)
    except lzma.LZMAError as error:
        return str(error)


def _bzip2(payload: memoryview, output: _Output) -> str:
    import bz2

    try:
        return _stream(bz2.BZ2Decompressor(), payload[:-4], output)
    except OSError as error:
        return str(error)


def _stream(stream: bz2.BZ2Decompressor | lzma.LZMADecompressor, payload: memoryview, output: _Output) -> str:
    for start in range(0, len(payload), _CHUNK):
        data = bytes(payload[start : start + _CHUNK])
        while not stream.eof:
            output.append(stream.decompress(data, _CHUNK))
            data = b""
            if stream.needs_input:
                break
        if stream.eof:
            return ""
    return "it ends too early"


_METHODS: dict[str, Callable[[memoryview, _Output], str]] = {
    "gzip": _gzip,
    "lz4": _lz4,
    "zstd": _zstd,
    "xz": _xz,
    "lzma": _lzma,
    "bzip2": _bzip2,
}
_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"BZh", "bzip2"),
)
