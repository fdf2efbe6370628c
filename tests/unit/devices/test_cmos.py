"""The real-time clock and its memory."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from tests.fakes.lines import Clock, CountingIrq
from vmm.bus import Bus
from vmm.devices.cmos import SIZE, Cmos

A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
TIME_REGISTERS = (CENTURY, 9, 8, 7, 4, 2, 0)
NOON = datetime(2024, 2, 29, 12, 34, 56, tzinfo=UTC)  # a Thursday


class Chip:
    def __init__(self, start: datetime = NOON, low_bytes: int = 512 << 20, high_bytes: int = 0) -> None:
        self.irq, self.clock = CountingIrq(), Clock(start.timestamp())
        self.device = Cmos(self.irq, self.clock.call_later, low_bytes, high_bytes, clock=self.clock)
        self.bus = Bus("pio")
        self.bus.attach(0x70, SIZE, self.device)

    def read(self, index: int) -> int:
        self.bus.write(0x70, 1, index)
        return self.bus.read(0x71, 1)

    def write(self, index: int, value: int) -> None:
        self.bus.write(0x70, 1, index)
        self.bus.write(0x71, 1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, hours, minutes, seconds, as they are stored."""
        return [self.read(index) for index in TIME_REGISTERS]

    def set_time(self, *values: int) -> None:
        control = self.read(B)
        self.write(B, control | SET)
        for index, value in zip(TIME_REGISTERS, values, strict=True):
            self.write(index, value)
        self.write(B, control)


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_it_starts_in_bcd_and_24_hours_with_the_hosts_utc(chip: Chip) -> None:
    assert chip.read(B) == H24
    assert chip.time() == [0x20, 0x24, 0x02, 0x29, 0x12, 0x34, 0x56]
    assert chip.read(6) == 5  # Sunday is 1


def test_the_clock_runs(chip: Chip) -> None:
    chip.clock.advance(5)
    assert chip.time()[-2:] == [0x35, 0x01]


def test_binary_mode(chip: Chip) -> None:
    chip.write(B, BINARY | H24)
    assert chip.time() == [20, 24, 2, 29, 12, 34, 56]


@pytest.mark.parametrize(("hour", "shown"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_12_hour_mode(hour: int, shown: int) -> None:
    chip = Chip(NOON.replace(hour=hour))
    chip.write(B, 0)
    assert chip.read(4) == shown
    chip.set_time(*chip.time())
    chip.write(B, H24 | BINARY)
    assert chip.read(4) == hour


def test_the_time_that_the_guest_sets_runs_on(chip: Chip) -> None:
    chip.set_time(0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58)
    chip.clock.advance(3)
    assert chip.time() == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01]


def test_while_set_is_on_the_registers_stand_still(chip: Chip) -> None:
    before = chip.time()
    chip.write(B, H24 | SET)
    chip.clock.advance(10)
    assert chip.time() == before
    chip.write(0, 0x07)
    assert chip.read(0) == 0x07


def test_setting_month_before_day_does_not_pass_through_another_month() -> None:
    chip = Chip(datetime(2024, 1, 31, tzinfo=UTC))
    chip.set_time(0x20, 0x24, 0x02, 0x15, 0, 0, 0)
    assert chip.time()[:4] == [0x20, 0x24, 0x02, 0x15]


def test_a_single_field_can_be_set_without_set(chip: Chip) -> None:
    chip.write(2, 0x05)
    chip.clock.advance(1)
    assert chip.time() == [0x20, 0x24, 0x02, 0x29, 0x12, 0x05, 0x57]


def test_update_in_progress_comes_at_the_end_of_each_second_and_goes(chip: Chip) -> None:
    assert not chip.read(A) & 0x80
    chip.clock.advance(0.999)
    assert chip.read(A) & 0x80
    chip.clock.advance(0.002)
    assert not chip.read(A) & 0x80


def test_update_in_progress_is_off_while_set_is_on(chip: Chip) -> None:
    chip.write(B, H24 | SET)
    chip.clock.advance(0.999)
    assert not chip.read(A) & 0x80


def test_the_battery_is_good(chip: Chip) -> None:
    chip.write(D, 0)
    assert chip.read(D) == 0x80


def test_the_alarm_fires_once_at_its_time(chip: Chip) -> None:
    for index, value in ((5, 0x12), (3, 0x35), (1, 0x10)):
        chip.write(index, value)
    chip.write(B, H24 | AIE)
    chip.clock.advance(13)
    assert chip.irq.taken() == 0
    chip.clock.advance(1)
    assert chip.irq.taken() == 1
    assert chip.read(C) == 0xB0  # IRQF, AF, and UF for the seconds that passed
    assert chip.read(C) == 0
    chip.clock.advance(60)
    assert chip.irq.taken() == 0


def test_an_alarm_byte_of_0xc0_matches_always(chip: Chip) -> None:
    for index, value in ((5, 0xFF), (3, 0xC0), (1, 0x30)):
        chip.write(index, value)
    chip.write(B, H24 | AIE)
    fired = 0
    for _ in range(180):
        chip.clock.advance(1)
        if chip.irq.taken():
            chip.read(C)
            fired += 1
    assert fired == 3


def test_no_second_interrupt_before_register_c_was_read(chip: Chip) -> None:
    chip.write(B, H24 | UIE)
    chip.clock.advance(5)
    assert chip.irq.taken() == 1
    assert chip.read(C) & 0x90 == 0x90
    chip.clock.advance(1)
    assert chip.irq.taken() == 1


def test_an_alarm_passed_while_its_interrupt_was_off_interrupts_when_it_is_enabled(chip: Chip) -> None:
    for index, value in ((5, 0x12), (3, 0x35), (1, 0x00)):
        chip.write(index, value)
    chip.clock.advance(10)
    assert chip.irq.taken() == 0
    chip.write(B, H24 | AIE)
    assert chip.irq.taken() == 1


def test_a_timer_that_comes_late_still_finds_the_alarm(chip: Chip) -> None:
    for index, value in ((5, 0x12), (3, 0x35), (1, 0x00)):
        chip.write(index, value)
    chip.write(B, H24 | AIE)
    chip.clock.now_s += 3600 * 24 * 30
    chip.clock.advance(0)
    assert chip.irq.taken() == 1


def test_one_timer_however_often_the_guest_switches(chip: Chip) -> None:
    for _ in range(100):
        chip.write(B, H24 | AIE)
        chip.write(B, H24)
    assert len(chip.clock.timers) == 1
    chip.clock.advance(2)
    assert chip.clock.timers == []


def test_the_periodic_interrupt_is_refused(chip: Chip) -> None:
    chip.write(B, H24 | PIE)
    assert chip.read(B) == H24
    assert chip.clock.timers == []


def test_the_memory_sizes_are_there(chip: Chip) -> None:
    def word(index: int) -> int:
        return chip.read(index) | chip.read(index + 1) << 8

    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF  # more than fits
    assert word(0x34) == (512 - 16) * 16


def test_memory_above_4_gib_is_in_64_kib_units() -> None:
    chip = Chip(low_bytes=3 << 30, high_bytes=5 << 30)
    assert [chip.read(index) for index in (0x5B, 0x5C, 0x5D)] == list(((5 << 30) >> 16).to_bytes(3, "little"))


def test_the_shutdown_status_is_plain_memory(chip: Chip) -> None:
    chip.write(0x0F, 0x0A)
    assert chip.read(0x0F) == 0x0A


def test_bit_7_of_the_index_is_not_part_of_it(chip: Chip) -> None:
    assert chip.read(0x80 | D) == 0x80


def test_the_real_clock_is_the_default() -> None:
    device = Cmos(CountingIrq(), Clock(0).call_later, 1 << 20)
    device.write(0, 1, 9)
    assert device.read(1, 1) == int(time.strftime("%y", time.gmtime()), 16)
