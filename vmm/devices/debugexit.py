"""The debug exit port (QEMU's isa-debug-exit): a test guest ends the VM by writing its verdict."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 4


class DebugExit:
    """Calls *leave* (lock held) with what is written, in any width, to any of its four ports."""

    name = "debug-exit"

    def __init__(self, leave: Callable[[int], None]) -> None:
        self.lock = threading.Lock()
        self._leave = leave

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002  all ports are alike
        """Nothing to read: 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """End the VM with *value*."""
        self._leave(value)

    def register_name(self, offset: int) -> str:  # noqa: ARG002
        """The one register there is."""
        return "EXIT"
