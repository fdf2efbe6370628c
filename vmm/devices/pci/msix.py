"""MSI-X (PCI Local Bus 3.0 §6.8.2): a table of messages, a mask for each, and bits that tell which are held back.

A vector is an eventfd. While it may fire, the machine turns each of its signals into the vector's message; while it is
masked nobody reads it, the eventfd remembers, and just that is the pending bit: also for signals of native workers.
"""

from __future__ import annotations

import os
import select

from vmm.bus import ALL_ONES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class MsiPort(Protocol):
        """How a function's eventfds become messages. Any thread."""

        def set_messages(self, messages: Sequence[tuple[int, int, int]]) -> None:
            """For each (eventfd, address, data): what the eventfd's signals will send from now on."""

        def attach(self, fd: int) -> None:
            """Send a message for each signal of the eventfd *fd*."""

        def detach(self, fd: int) -> None:
            """Leave the signals of the eventfd *fd* where they are."""


CAPABILITY = 0x11
#: Offset of the message control register in the capability, and its bits.
CONTROL = 2
ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14
ENTRY_SIZE = 16
_VECTOR_CONTROL = 12
_VECTOR_MASKED = 1


def capability(vectors: int, table: int, pending: int) -> bytes:
    """The capability's body, for a table at offset *table* of BAR 0 and pending bits at *pending* (multiples of 8)."""
    return (vectors - 1).to_bytes(2, "little") + table.to_bytes(4, "little") + pending.to_bytes(4, "little")


class Msix:
    """The vectors of one function. Its callers hold the function's lock."""

    def __init__(self, vectors: int, port: MsiPort) -> None:
        self._port = port
        #: The eventfd of each vector.
        self.fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(vectors)]
        self._table = bytearray(bytes(_VECTOR_CONTROL) + _VECTOR_MASKED.to_bytes(4, "little")) * vectors
        self._attached = [False] * vectors
        self._function_masked = False
        #: Whether the function interrupts by messages, and not by INTx.
        self.enabled = False

    def set_control(self, control: int) -> None:
        """The message control register is *control* now."""
        enabled, masked = bool(control & ENABLE), bool(control & FUNCTION_MASK)
        if (enabled, masked) != (self.enabled, self._function_masked):
            self.enabled, self._function_masked = enabled, masked
            self._update(range(len(self.fds)))

    def signal(self, vector: int) -> None:
        """Send the message of *vector*, or hold it back while it is masked."""
        os.eventfd_write(self.fds[vector], 1)

    def forget(self) -> None:
        """Nothing is pending any more."""
        for fd in self.fds:
            _drain(fd)

    # The table and the pending bits, for software. Accesses are of 4 or 8 aligned bytes (§6.8.2).

    def read_table(self, offset: int, size: int) -> int:
        """*size* bytes of the table; all ones where no entry is, or the access is not allowed."""
        if size < 4 or offset % size or offset + size > len(self._table):
            return ALL_ONES[size]
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        """Write *value* of *size* bytes to the table; the vector's signals follow at once."""
        if size < 4 or offset % size or offset + size > len(self._table):
            return
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        vector = offset // ENTRY_SIZE
        control = vector * ENTRY_SIZE + _VECTOR_CONTROL
        self._table[control : control + 4] = (self._table[control] & _VECTOR_MASKED).to_bytes(4, "little")
        self._update((vector,))

    def read_pending(self, offset: int, size: int) -> int:
        """*size* bytes of the pending bits, one for each vector."""
        poll = select.poll()
        for fd, attached in zip(self.fds, self._attached, strict=True):
            if not attached:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        bits = sum(1 << vector for vector, fd in enumerate(self.fds) if fd in ready)
        return bits >> 8 * offset & ALL_ONES[size]

    def state(self) -> bytes:
        """The table. What is held back is not in it: a driver that goes on is interrupted for everything anyway."""
        return bytes(self._table)

    def restore(self, state: bytes) -> None:
        """Undo `state`, before the first `set_control`.

        Raises:
            ValueError: it is none.
        """
        if len(state) != len(self._table):
            raise ValueError("an MSI-X table of another size")
        self._table[:] = state

    def close(self) -> None:
        """Close the eventfds."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _update(self, vectors: Iterable[int]) -> None:
        """Attach those of *vectors* that may fire, with their messages of now, and detach the others."""
        open_ = self.enabled and not self._function_masked
        firing = {vector for vector in vectors if open_ and not self._entry(vector, _VECTOR_CONTROL, 4)}
        if firing:
            self._port.set_messages(
                [(self.fds[vector], self._entry(vector, 0, 8), self._entry(vector, 8, 4)) for vector in firing]
            )
        for vector in vectors:
            fires = vector in firing
            if fires != self._attached[vector]:
                self._attached[vector] = fires
                (self._attach if fires else self._detach)(self.fds[vector])

    def _entry(self, vector: int, offset: int, size: int) -> int:
        start = vector * ENTRY_SIZE + offset
        return int.from_bytes(self._table[start : start + size], "little")

    def _attach(self, fd: int) -> None:
        held_back = _drain(fd)
        self._port.attach(fd)  # a signal that comes just before this is KVM's to find
        if held_back:
            os.eventfd_write(fd, 1)

    def _detach(self, fd: int) -> None:
        _drain(fd)  # what is counted here was sent: older kernels leave it in the eventfd
        self._port.detach(fd)


def _drain(fd: int) -> bool:
    """Empty the eventfd *fd*; whether there was anything in it."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
