"""How a device interrupts its driver: the queue's interrupt and the configuration's, over one line or a vector each."""

from __future__ import annotations

import ctypes

from vmm.virtio.spec import Interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmm.irq import IrqLine

    class Interrupts(Protocol):
        """The interrupts of one device, in the form its transport gives them. Under the transport's lock."""

        def queue(self, index: int) -> None:
            """Tell the driver that queue *index* has used buffers."""

        def config(self) -> None:
            """Tell the driver that the configuration space, or the status, changed."""

        def wire(self, index: int) -> Wire:
            """What a worker outside Python interrupts the driver with for queue *index*."""

        def reset(self) -> None:
            """Forget what was not yet delivered."""


class Wire:
    """A queue's interrupt for a worker outside Python: set the byte at `flag` (if not 0) to 1, then write to `fd`.

    `fd` is an eventfd, or -1 where the driver wants no interrupts of this queue.
    """

    __slots__ = ("fd", "flag")

    def __init__(self, fd: int, flag: int = 0) -> None:
        self.fd, self.flag = fd, flag


class LineInterrupts:
    """All interrupts over one line, with a status register that tells the causes (VIRTIO 1.2 §4.1.4.5, §4.2.2).

    Each cause is a byte of its own, so that workers outside Python set theirs with a plain store while the driver
    acknowledges. A cause set just before it is acknowledged is not lost on the driver: it looks at the ring after.
    """

    def __init__(self, irq: IrqLine) -> None:
        self._irq = irq
        self._causes = (ctypes.c_uint8 * 2)()  # used buffers, configuration

    def queue(self, index: int) -> None:  # noqa: ARG002  one line for all of them
        """As `Interrupts.queue`."""
        self._causes[0] = 1
        self._irq.pulse()

    def config(self) -> None:
        """As `Interrupts.config`."""
        self._causes[1] = 1
        self._irq.pulse()

    def wire(self, index: int) -> Wire:  # noqa: ARG002
        """As `Interrupts.wire`."""
        # SAFETY: the byte lives as long as this object, which the transport keeps until its device is stopped.
        return Wire(self._irq.fd, ctypes.addressof(self._causes))

    @property
    def status(self) -> int:
        """The interrupt status register: bits of `Interrupt`."""
        return (Interrupt.USED_BUFFER if self._causes[0] else 0) | (Interrupt.CONFIG_CHANGE if self._causes[1] else 0)

    def acknowledge(self, causes: int) -> None:
        """The driver has seen *causes*."""
        if causes & Interrupt.USED_BUFFER:
            self._causes[0] = 0
        if causes & Interrupt.CONFIG_CHANGE:
            self._causes[1] = 0

    def state(self) -> bytes:
        """The causes."""
        return bytes(self._causes)

    def restore(self, state: bytes) -> None:
        """Undo `state`; the line is left alone."""
        self._causes[0], self._causes[1] = state

    def reset(self) -> None:
        """As `Interrupts.reset`."""
        self._causes[0] = self._causes[1] = 0
