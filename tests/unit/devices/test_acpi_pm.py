"""ACPI's fixed registers."""

from __future__ import annotations

import pytest

from vmm.bus import Bus
from vmm.devices.acpi_pm import SIZE, AcpiPm

BASE = 0x600
STATUS, ENABLE, CONTROL, TIMER, RESET = BASE, BASE + 2, BASE + 4, BASE + 8, BASE + 12


class Chip:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.now_ns = 0
        self.bus = Bus("pio")
        device = AcpiPm(lambda: self.events.append("off"), lambda: self.events.append("reset"), lambda: self.now_ns)
        self.bus.attach(BASE, SIZE, device)


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_it_is_in_acpi_mode_for_good(chip: Chip) -> None:
    chip.bus.write(CONTROL, 2, 0)
    assert chip.bus.read(CONTROL, 2) & 1


def test_s5_powers_off(chip: Chip) -> None:
    chip.bus.write(CONTROL, 2, 5 << 10)
    assert chip.events == []
    chip.bus.write(CONTROL, 2, 5 << 10 | 1 << 13)
    assert chip.events == ["off"]


def test_sleep_enable_reads_as_0_and_the_type_is_kept(chip: Chip) -> None:
    chip.bus.write(CONTROL, 2, 5 << 10 | 1 << 13)
    assert chip.bus.read(CONTROL, 2) == 5 << 10 | 1


@pytest.mark.parametrize("sleep_type", [0, 1, 3, 4, 7])
def test_other_sleep_types_do_nothing(chip: Chip, sleep_type: int) -> None:
    chip.bus.write(CONTROL, 2, sleep_type << 10 | 1 << 13)
    assert chip.events == []


def test_the_timer_runs_at_3_579545_mhz(chip: Chip) -> None:
    chip.now_ns = 2_000_000_000
    assert chip.bus.read(TIMER, 4) == 7_159_090


def test_the_timer_wraps_at_32_bits(chip: Chip) -> None:
    chip.now_ns = 10**15
    assert chip.bus.read(TIMER, 4) == 10**15 * 3_579_545 // 10**9 % 2**32


def test_1_to_the_reset_register_resets(chip: Chip) -> None:
    chip.bus.write(RESET, 1, 0)
    assert chip.events == []
    chip.bus.write(RESET, 1, 1)
    assert chip.events == ["reset"]


def test_no_event_is_pending_and_enables_are_kept(chip: Chip) -> None:
    """ACPICA reads an enable bit back; that of the timer is refused, for its overflow makes no event."""
    chip.bus.write(ENABLE, 2, 0x0101)
    assert chip.bus.read(ENABLE, 2) == 0x0100
    chip.bus.write(STATUS, 2, 0xFFFF)
    assert chip.bus.read(STATUS, 2) == 0
