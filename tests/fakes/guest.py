"""Guests of a few instructions, as bytes: what a kernel can do to its machine, without a kernel.

They are entered by PVH: 32-bit protected mode, flat, no paging, interrupts off, an IDT of limit 0, and a stack. All
pieces of code are position-independent; put them one after the other into `kernel`.
"""

from __future__ import annotations

import struct

from tests.fakes.kernels import elf, pvh_note
from vmm import layout

LOAD = layout.HIGH_RAM

HANG = b"\xeb\xfe"  # jmp to itself
HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; and again if it wakes
UNDEFINED = b"\x0f\x0b"  # ud2
#: Loads an IDT of 256 gates, none of them present: a stretch of RAM that nobody has written to.
EMPTY_GATES = (
    b"\x68" + struct.pack("<I", 0x20_0000) + b"\x68" + struct.pack("<I", 0x07FF_0000) + b"\x0f\x01\x5c\x24\x02"
)  # push base; push limit << 16; lidt [esp + 2]
#: Reads bytes from COM1, polling, and sends each back.
ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee ebef")


def outb(port: int, value: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + struct.pack("<B", value) + b"\xee"


def outw(port: int, value: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


def inb(port: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\xec"


def load(gpa: int) -> bytes:
    """Read 4 bytes of memory."""
    return b"\xa1" + struct.pack("<I", gpa)


def store(gpa: int, value: int) -> bytes:
    """Write 4 bytes of memory."""
    return b"\xc7\x05" + struct.pack("<II", gpa, value)


def say(text: str) -> bytes:
    """Print *text* on COM1: call over it, pop its address, rep outsb."""
    data = text.encode()
    return (
        b"\xe8" + struct.pack("<I", len(data)) + data
        + b"\x5e\xb9" + struct.pack("<I", len(data))
        + b"\x66\xba" + struct.pack("<H", layout.PORT_COM1) + b"\xf3\x6e"
    )  # fmt: skip


#: The sleep state S5, as the DSDT describes it: SLP_TYP 5 with SLP_EN in PM1a_CNT.
POWER_OFF = outw(layout.PORT_ACPI_PM + 4, 5 << 10 | 1 << 13) + HANG
RESET_BY_KEYBOARD_CONTROLLER = outb(layout.PORT_I8042 + 4, 0xFE) + HANG
RESET_BY_ACPI = outb(layout.PORT_ACPI_PM + 0x0C, 1) + HANG


def leave(status: int) -> bytes:
    """Write *status* to the debug-exit port."""
    return outb(layout.PORT_DEBUG_EXIT, status) + HANG


def kernel(*code: bytes) -> bytes:
    """An ELF file that a VMM can boot by PVH."""
    text = b"".join(code)
    text += bytes(-len(text) % 8)  # so that the note behind it is aligned
    return elf([(LOAD, text, len(text))], entry=LOAD, notes=pvh_note(LOAD))
