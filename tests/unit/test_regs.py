"""Registers declared once."""

from __future__ import annotations

from vmm.regs import RegisterBlock, register, write_only


class Chip(RegisterBlock):
    def __init__(self) -> None:
        super().__init__()
        self.value = 1
        self.commands: list[int] = []

    @register(0, "Value", width=2)
    def value_register(self) -> int:
        return self.value

    @value_register.writer
    def _write_value(self, value: int) -> None:
        self.value = value

    @register(4, "Version")
    def version(self) -> int:
        return 7

    @write_only(8, "Command")
    def command(self, value: int) -> None:
        self.commands.append(value)


class BiggerChip(Chip):
    @register(12, "More", width=1)
    def more(self) -> int:
        return 9


def test_a_register_is_read_and_written_at_its_width() -> None:
    chip = Chip()
    chip.write(0, 2, 0x1234)
    assert chip.read(0, 2) == 0x1234


def test_another_width_reads_ones_and_writes_nothing() -> None:
    chip = Chip()
    assert chip.read(0, 1) == 0xFF
    assert chip.read(0, 8) == 0xFFFF_FFFF_FFFF_FFFF
    chip.write(0, 4, 5)
    assert chip.value == 1


def test_an_offset_without_register_reads_ones_and_writes_nothing() -> None:
    chip = Chip()
    assert chip.read(1, 1) == 0xFF
    chip.write(2, 2, 5)
    assert chip.value == 1


def test_read_only_and_write_only() -> None:
    chip = Chip()
    chip.write(4, 4, 5)
    assert chip.read(4, 4) == 7
    chip.write(8, 4, 5)
    assert chip.commands == [5]
    assert chip.read(8, 4) == 0xFFFF_FFFF


def test_names_for_the_trace() -> None:
    assert [Chip().register_name(offset) for offset in (0, 4, 8, 9)] == ["Value", "Version", "Command", "+0x9"]


def test_a_subclass_adds_registers_and_leaves_its_base_alone() -> None:
    assert BiggerChip().read(12, 1) == 9
    assert BiggerChip().read(4, 4) == 7
    assert Chip().read(12, 1) == 0xFF
