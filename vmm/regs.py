"""Registers declared once, datasheet-like: offset, name, width, and what reading and writing them does.

    class Chip(RegisterBlock):
        @register(0x070, "Status")
        def status(self) -> int:
            return self._status

        @status.writer
        def _write_status(self, value: int) -> None:
            self._status = value

An access of another width, or to an offset without a register, reads all ones and writes nothing.
"""

from __future__ import annotations

import threading

from vmm.state import attributes, put_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Protocol

    from vmm.state import State

    class Chip(Protocol):
        """A device on a bus that remembers something; all is called under *lock*, or while the machine stands."""

        name: str
        lock: threading.Lock

        def state(self) -> State:
            """As `RegisterBlock.state`."""

        def restore(self, state: State) -> None:
            """As `RegisterBlock.restore`."""

        def revive(self) -> None:
            """As `RegisterBlock.revive`."""

    Reader = Callable[[Any], int]
    Writer = Callable[[Any, int], None]


class Register:
    """One register: *width* in bytes, and its reader and writer (either may be missing)."""

    __slots__ = ("name", "offset", "read", "width", "write")

    def __init__(self, offset: int, name: str, width: int, read: Reader | None) -> None:
        self.offset, self.name, self.width = offset, name, width
        self.read = read
        self.write: Writer | None = None

    def writer(self, function: Writer) -> Writer:
        """Declare *function* as what writing this register does."""
        self.write = function
        return function


def register(offset: int, name: str, width: int = 4) -> Callable[[Reader], Register]:
    """Declare the decorated method as the reader of the register *name* at *offset*."""

    def declare(function: Reader) -> Register:
        return Register(offset, name, width, function)

    return declare


def write_only(offset: int, name: str) -> Callable[[Writer], Register]:
    """Declare the decorated method as the writer of a register of 4 bytes that reads as all ones."""

    def declare(function: Writer) -> Register:
        declared = Register(offset, name, 4, None)
        declared.write = function
        return declared

    return declare


#: How many writes a `PostedRegister` holds.
POSTED_MAX = 4096
_INDEXES = 16


class PlainRegister:
    """A register, or a row of them, that reads what was last put into *storage* and has no other effect.

    The machine may answer the guest's accesses from *storage* without asking the device, in any thread and without its
    lock. *width* is the only width of an access, in bytes, or 0 for any; only a *writable* one is written by the guest.
    """

    __slots__ = ("accesses", "gate", "offset", "storage", "width", "writable")

    def __init__(self, offset: int, storage: bytearray, *, width: int = 0, writable: bool = False) -> None:
        self.offset, self.storage, self.width, self.writable = offset, storage, width, writable
        #: How many accesses were answered so, a native 64-bit number; and a byte that is 0 while none are.
        self.accesses, self.gate = bytearray(8), bytearray(b"\1")

    def open(self, yes: bool) -> None:
        """Whether the guest's accesses may be answered so from now on; else the device is asked."""
        self.gate[0] = yes


class PostedRegister:
    """A register one byte wide whose writes the machine may collect, and tell the device late but in order.

    The device takes (`take`) them before it answers any other access, so they come to it in the state in which the
    guest wrote them. The machine calls *arrived*, under *lock*, soon after the first was collected. Reads are the
    device's.
    """

    __slots__ = ("_arrived", "_indexes", "_lock", "accesses", "offset", "ring")

    def __init__(self, offset: int, lock: threading.Lock, arrived: Callable[[], None]) -> None:
        self.offset = offset
        self._lock, self._arrived = lock, arrived
        #: How many bytes were ever put into the ring and taken from it, native 64-bit numbers; then the ring.
        self.ring = bytearray(_INDEXES + POSTED_MAX)
        self._indexes = memoryview(self.ring)[:_INDEXES].cast("Q")
        #: As that of a `PlainRegister`.
        self.accesses = bytearray(8)

    def take(self) -> bytes:
        """What was collected since the last call. Under the device's lock."""
        # SAFETY: whoever collects moves the first index only, after it has filled the bytes before it; we move the
        # second only. Both are aligned, so that they are read and written whole.
        put, taken = self._indexes
        if put == taken:
            return b""
        begin, end = _INDEXES + taken % POSTED_MAX, _INDEXES + put % POSTED_MAX
        data = self.ring[begin:end] if begin < end else self.ring[begin:] + self.ring[_INDEXES:end]
        self._indexes[1] = put
        return bytes(data)

    def hand_over(self) -> None:
        """Have the device take what was collected. Any thread."""
        with self._lock:
            self._arrived()


class RegisterBlock:
    """A bus device made of declared registers. Single-threaded: its callers hold `lock`."""

    name = "device"
    registers: ClassVar[dict[int, Register]] = {}
    #: The attributes that a guest can tell: all that `state` gives.
    kept: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = {r.offset: r for r in vars(cls).values() if isinstance(r, Register)}
        cls.registers = {**cls.registers, **own}

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def read(self, offset: int, size: int) -> int:
        """The value of the register at *offset*, or all ones of *size* bytes."""
        declared = self.registers.get(offset)
        if declared is None or declared.width != size or declared.read is None:
            return (1 << 8 * size) - 1
        return declared.read(self)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write *value* to the register at *offset*; ignored where there is none of this width."""
        declared = self.registers.get(offset)
        if declared is not None and declared.width == size and declared.write is not None:
            declared.write(self, value)

    def state(self) -> State:
        """What the guest would miss in another block of this kind."""
        return attributes(self, self.kept)

    def restore(self, state: State) -> None:
        """Go on from *state*; nothing is told to anybody before `revive`.

        Raises:
            KeyError, TypeError, ValueError: it is no state of such a block.
        """
        put_back(self, self.kept, state)

    def revive(self) -> None:
        """The machine goes on after `restore`: do again what may have been lost on the way, interrupts above all."""

    def register_name(self, offset: int) -> str:
        """The declared name of the register at *offset*, for the trace."""
        declared = self.registers.get(offset)
        return declared.name if declared else f"+{offset:#x}"
