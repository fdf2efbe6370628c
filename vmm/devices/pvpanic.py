"""The panic port (QEMU docs/specs/pvpanic, ACPI id QEMU0001): the guest's kernel says that it has panicked."""

from __future__ import annotations

from vmm.regs import RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PANICKED = 0x01
CRASH_LOADED = 0x02  # panicked, and a crash kernel is about to run


class PvPanic(RegisterBlock):
    """Calls *report* (lock held) with the events, `PANICKED` or `CRASH_LOADED` or both, that the guest names."""

    name = "pvpanic"

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self._report = report

    @register(0, "EVENTS", width=1)
    def events(self) -> int:
        return PANICKED | CRASH_LOADED

    @events.writer
    def _write_events(self, value: int) -> None:
        if value & (PANICKED | CRASH_LOADED):
            self._report(value & (PANICKED | CRASH_LOADED))
