"""How a device raises an interrupt without knowing of KVM."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class IrqLine(Protocol):
        """One edge-triggered interrupt input of the machine."""

        #: The eventfd whose signals are the pulses, for those that cannot call `pulse`.
        fd: int

        def pulse(self) -> None:
            """Raise the interrupt once. Any thread; never blocks."""


class EventFdIrqLine:
    """An interrupt line whose pulses are writes to an eventfd (an irqfd, once the machine has registered it)."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def pulse(self) -> None:
        """Raise the interrupt once (KVM api.rst 4.75, KVM_IRQFD)."""
        os.eventfd_write(self.fd, 1)

    def drain(self) -> None:
        """Forget the pulses that nobody took."""
        try:  # noqa: SIM105  contextlib costs start-up time
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self.fd)
