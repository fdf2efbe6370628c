"""The generation id of a virtual machine (Microsoft, "Virtual Machine Generation ID"): another one in each copy.

It is 16 random bytes in memory, and no register; ACPI tells where (`vmm.boot.acpi`). A guest that learns of a new one
makes its random numbers anew.
"""

from __future__ import annotations

import os

from vmm import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.irq import IrqLine
    from vmm.memory import GuestMemory

_SIZE = 16


class GenerationId:
    """The generation id in *memory*; *irq* is that of ACPI's generic event device."""

    def __init__(self, memory: GuestMemory, irq: IrqLine) -> None:
        self._memory, self._irq = memory, irq

    def renew(self) -> None:
        """Another one, before the guest boots or goes on."""
        self._memory.write(layout.GENERATION_ID, os.urandom(_SIZE))

    def notify(self) -> None:
        """Tell the guest that it is a copy; it looks at the id then."""
        self._irq.pulse()
