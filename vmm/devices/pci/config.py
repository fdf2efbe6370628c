"""The configuration space of a PCI function (PCI Local Bus 3.0 §6.1): bytes, and which of their bits software can set.

=======  =====  ==========================================================
offset   size   type 0 header
=======  =====  ==========================================================
0x00     2+2    vendor, device
0x04     2+2    command, status
0x08     1+3    revision, class code
0x10     6 x 4  base address registers (BARs)
0x2c     2+2    subsystem vendor, subsystem
0x34     1      first capability
0x3c     1+1    interrupt line (software's own), interrupt pin
=======  =====  ==========================================================
"""

from __future__ import annotations

from vmm.bus import ALL_ONES

COMMAND, STATUS, BAR0 = 0x04, 0x06, 0x10
_REVISION, _CLASS, _SUBSYSTEM_VENDOR, _SUBSYSTEM = 0x08, 0x09, 0x2C, 0x2E
_CAPABILITIES, _INTERRUPT_LINE, _INTERRUPT_PIN, _HEADER_END = 0x34, 0x3C, 0x3D, 0x40
SIZE = 0x100


class Command:
    """Bits of the command register (§6.2.2)."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    INTX_DISABLE = 1 << 10


class Status:
    """Bits of the status register (§6.2.3)."""

    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4


_BAR_64_BIT = 0b100
_BAR_ADDRESS = ~0xF & (1 << 64) - 1


class ConfigSpace:
    """One function's 256 bytes. Software writes the bits in its mask, the device everything (`set`)."""

    __slots__ = ("_bytes", "_last_capability", "_next_capability", "_writable")

    def __init__(
        self, *, vendor: int, device: int, class_code: int, revision: int = 0, subsystem: tuple[int, int] = (0, 0)
    ) -> None:
        """*class_code* is base class, subclass and interface as one number of 24 bits, *subsystem* vendor and id."""
        self._bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._last_capability, self._next_capability = _CAPABILITIES, _HEADER_END
        self.set(0, 2, vendor)
        self.set(2, 2, device)
        self.set(_REVISION, 1, revision)
        self.set(_CLASS, 3, class_code)
        self.set(_SUBSYSTEM_VENDOR, 2, subsystem[0])
        self.set(_SUBSYSTEM, 2, subsystem[1])

    # What the function declares.

    def allow(self, offset: int, size: int, mask: int) -> None:
        """Let software set the bits *mask* of the *size* bytes at *offset*."""
        self._writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_interrupt(self, line: int) -> None:
        """The function has INTA#, which firmware has found connected to interrupt *line*."""
        self.set(_INTERRUPT_PIN, 1, 1)
        self.set(_INTERRUPT_LINE, 1, line)
        self.allow(_INTERRUPT_LINE, 1, 0xFF)

    def add_memory_bar(self, size: int, base: int) -> None:
        """BAR 0 and 1: a 64-bit memory BAR of *size* bytes (a power of two), put at *base* by firmware (§6.2.5.1)."""
        self.allow(BAR0, 8, -size & _BAR_ADDRESS)
        self.set(BAR0, 8, base | _BAR_64_BIT)

    def add_capability(self, kind: int, body: bytes) -> int:
        """Append the capability *kind*, *body* being what follows its two first bytes; its offset (§6.7).

        Raises:
            ValueError: the 192 bytes for capabilities are full.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > SIZE:
            raise ValueError(f"capability {kind:#x} does not fit")
        self.set(self._last_capability, 1, offset)
        self.set(STATUS, 2, self.get(STATUS, 2) | Status.CAPABILITIES)
        self._bytes[offset:end] = bytes((kind, 0)) + body
        self._last_capability, self._next_capability = offset + 1, (end + 3) & ~3
        return offset

    # What is in it.

    def get(self, offset: int, size: int) -> int:
        """The *size* bytes at *offset*."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Put *value* into the *size* bytes at *offset*, whatever software may do."""
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")

    def state(self) -> bytes:
        """What software has written."""
        return bytes(byte & mask for byte, mask in zip(self._bytes, self._writable, strict=True))

    def restore(self, state: bytes) -> None:
        """Undo `state`; what software cannot write stays.

        Raises:
            ValueError: it is none.
        """
        for at, (byte, mask) in enumerate(zip(state, self._writable, strict=True)):
            self._bytes[at] = self._bytes[at] & ~mask | byte & mask

    @property
    def bar_base(self) -> int:
        """Where BAR 0 points to."""
        return self.get(BAR0, 8) & _BAR_ADDRESS

    def read_config(self, offset: int, size: int) -> int:
        """What software reads: *size* bytes at *offset*, all ones behind the 256."""
        return self.get(offset, size) if offset + size <= SIZE else ALL_ONES[size]

    def write_config(self, offset: int, size: int, value: int) -> None:
        """What software writes."""
        if offset + size > SIZE:
            return
        mask = int.from_bytes(self._writable[offset : offset + size], "little")
        self.set(offset, size, self.get(offset, size) & ~mask | value & mask)
