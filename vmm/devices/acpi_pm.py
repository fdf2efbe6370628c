"""ACPI's fixed hardware: power management registers as the FADT declares them (ACPI 6.5 §4.8.3).

======  ====  ==========================================================
offset  size  register
======  ====  ==========================================================
0x00    2     PM1a_STS
0x02    2     PM1a_EN
0x04    2     PM1a_CNT; SLP_TYP 5 is the S5 of the DSDT
0x08    4     PM_TMR, 32 bits at 3.579545 MHz
0x0C    1     reset register, value 1
======  ====  ==========================================================
"""

from __future__ import annotations

import time

from vmm.regs import RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.state import State

SIZE = 16
RESET_OFFSET = 0x0C
RESET_VALUE = 1
SLP_TYP_S5 = 5
PM_TIMER_HZ = 3_579_545

_TMR_EN = 0x0001
_CNT_SCI_EN, _CNT_SLP_EN = 0x0001, 0x2000
_CNT_KEPT = 0x1C07  # SLP_TYP, GBL_RLS, BM_RLD, SCI_EN


class AcpiPm(RegisterBlock):
    """Power-off, reset and the timer; the callables are called with `lock` held. No fixed event ever happens."""

    name = "acpi-pm"
    kept = ("_enable", "_control")

    def __init__(
        self,
        power_off: Callable[[], None],
        reset: Callable[[], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__()
        self._power_off = power_off
        self._reset = reset
        self._clock_ns = clock_ns
        self._enable = 0
        self._control = 0
        self._clock_offset_ns = 0

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        return super().state() | {"now_ns": self._now_ns()}

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`: the timer goes on where it was."""
        super().restore(state)
        self._clock_offset_ns = state["now_ns"] - self._clock_ns()

    def _now_ns(self) -> int:
        return self._clock_ns() + self._clock_offset_ns

    @register(0x00, "PM1a_STS", width=2)
    def status(self) -> int:
        return 0

    @register(0x02, "PM1a_EN", width=2)
    def enable(self) -> int:
        return self._enable

    @enable.writer
    def _write_enable(self, value: int) -> None:
        self._enable = value & ~_TMR_EN  # refused: the timer's overflow makes no event

    @register(0x04, "PM1a_CNT", width=2)
    def control(self) -> int:
        return self._control | _CNT_SCI_EN  # always in ACPI mode

    @control.writer
    def _write_control(self, value: int) -> None:
        self._control = value & _CNT_KEPT
        if value & _CNT_SLP_EN and value >> 10 & 7 == SLP_TYP_S5:
            self._power_off()

    @register(0x08, "PM_TMR", width=4)
    def timer(self) -> int:
        return self._now_ns() * PM_TIMER_HZ // 1_000_000_000 & 0xFFFF_FFFF

    @register(RESET_OFFSET, "RESET", width=1)
    def reset_register(self) -> int:
        return 0

    @reset_register.writer
    def _write_reset(self, value: int) -> None:
        if value == RESET_VALUE:
            self._reset()
