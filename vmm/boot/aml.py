"""A small AML assembler: each function returns the bytes of one construct (ACPI 6.4 §20.2, resources §6.4).

    scope("_SB_", device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io(0x3F8, 8), irq(4)))))

Terms are bytes; a name is one segment of up to four characters, padded with `_`, in the scope that it stands in.
"""

from __future__ import annotations

import struct

_EXT = b"\x5b"
_END_TAG = b"\x79\x00"
_FIXED_RANGE = 0x0C  # produced and decoded from its first to its last address, neither of which moves


def integer(value: int) -> bytes:
    """An integer constant of up to 64 bits, in its shortest form."""
    if value in (0, 1):
        return bytes((value,))  # ZeroOp, OneOp
    for limit, prefix, form in ((0xFF, 0x0A, "<BB"), (0xFFFF, 0x0B, "<BH"), (0xFFFF_FFFF, 0x0C, "<BI")):
        if value <= limit:
            return struct.pack(form, prefix, value)
    return struct.pack("<BQ", 0x0E, value)


def string(text: str) -> bytes:
    """An ASCII string constant."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA ID such as "PNP0501", as the integer that `_HID` takes."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + (letters << 16 | int(text[3:], 16)).to_bytes(4, "big")


def package(*elements: bytes) -> bytes:
    """A package of *elements*."""
    return b"\x12" + _with_length(bytes((len(elements),)) + b"".join(elements))


def name(segment: str, value: bytes) -> bytes:
    """`Name (segment, value)`."""
    return b"\x08" + _segment(segment) + value


def scope(segment: str, *terms: bytes) -> bytes:
    """`Scope (segment) { terms }`."""
    return b"\x10" + _with_length(_segment(segment) + b"".join(terms))


def device(segment: str, *terms: bytes) -> bytes:
    """`Device (segment) { terms }`."""
    return _EXT + b"\x82" + _with_length(_segment(segment) + b"".join(terms))


def method(segment: str, arguments: int, *terms: bytes) -> bytes:
    """`Method (segment, arguments) { terms }`."""
    return b"\x14" + _with_length(_segment(segment) + bytes((arguments,)) + b"".join(terms))


def notify(segment: str, value: int) -> bytes:
    """`Notify (segment, value)`: of a device in this scope, or in one around it."""
    return b"\x86" + _segment(segment) + integer(value)


def resources(*descriptors: bytes) -> bytes:
    """`ResourceTemplate () { descriptors }`: a buffer that ends with the end tag."""
    content = b"".join(descriptors) + _END_TAG
    return b"\x11" + _with_length(integer(len(content)) + content)


def io(port: int, size: int) -> bytes:
    """`IO (Decode16, port, port, 1, size)`: *size* ports from *port*, fixed."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, size)


def irq(number: int) -> bytes:
    """`IRQNoFlags () {number}`: an ISA interrupt, 0 to 15, edge-triggered, active high."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32(gpa: int, size: int) -> bytes:
    """`Memory32Fixed (ReadWrite, gpa, size)`."""
    return struct.pack("<BHBII", 0x86, 9, 1, gpa, size)


def interrupt(gsi: int) -> bytes:
    """`Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}`."""
    return struct.pack("<BHBBI", 0x89, 6, 0b0011, 1, gsi)


def bus_numbers(first: int, last: int) -> bytes:
    """`WordBusNumber`: the buses that a bridge makes."""
    return struct.pack("<BHBBB5H", 0x88, 13, 2, _FIXED_RANGE, 0, 0, first, last, 0, last - first + 1)


def memory_window(gpa: int, size: int) -> bytes:
    """`QWordMemory (…, NonCacheable, ReadWrite, …)`: addresses that a bridge passes on."""
    return struct.pack("<BHBBB5Q", 0x8A, 43, 0, _FIXED_RANGE, 1, 0, gpa, gpa + size - 1, 0, size)


def _segment(segment: str) -> bytes:
    return segment.ljust(4, "_").encode("ascii")


def _with_length(content: bytes) -> bytes:
    """*content* behind its PkgLength, which counts itself (ACPI 6.4 §20.2.4)."""
    if len(content) + 1 < 0x40:
        return bytes((len(content) + 1,)) + content
    for extra in (1, 2, 3):
        length = len(content) + 1 + extra
        if length < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little") + content
    raise OverflowError("AML package of 256 MiB or more")
