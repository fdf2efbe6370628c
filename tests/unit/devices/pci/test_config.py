"""Configuration space: what software can read and what it can change."""

from __future__ import annotations

import pytest

from vmm.devices.pci.config import BAR0, COMMAND, STATUS, Command, ConfigSpace


@pytest.fixture
def config() -> ConfigSpace:
    return ConfigSpace(vendor=0x1234, device=0x5678, class_code=0x0A0B0C, revision=9, subsystem=(0x1111, 0x2222))


def test_identity(config: ConfigSpace) -> None:
    assert config.read_config(0x00, 4) == 0x5678_1234
    assert config.read_config(0x08, 4) == 0x0A0B0C_09
    assert config.read_config(0x2C, 4) == 0x2222_1111
    assert config.read_config(0x02, 2) == 0x5678
    assert config.read_config(0x0B, 1) == 0x0A


@pytest.mark.parametrize("offset", range(0, 0x100, 4))
def test_nothing_is_writable_that_was_not_declared(config: ConfigSpace, offset: int) -> None:
    before = config.read_config(offset, 4)
    config.write_config(offset, 4, 0xFFFF_FFFF)
    config.write_config(offset, 4, 0)
    assert config.read_config(offset, 4) == before


@pytest.mark.parametrize("offset", [0x100, 0xFFF, 0xFE])
def test_behind_the_256_bytes_is_nothing(config: ConfigSpace, offset: int) -> None:
    config.write_config(offset, 4, 0)
    assert config.read_config(offset, 4) == 0xFFFF_FFFF


def test_only_declared_bits_change(config: ConfigSpace) -> None:
    config.allow(COMMAND, 2, Command.MEMORY | Command.BUS_MASTER)
    config.write_config(COMMAND, 4, 0xFFFF_FFFF)
    assert config.read_config(COMMAND, 4) == Command.MEMORY | Command.BUS_MASTER
    config.write_config(COMMAND, 1, Command.MEMORY)
    assert config.read_config(COMMAND, 2) == Command.MEMORY


def test_a_bar_tells_its_size_and_keeps_its_type(config: ConfigSpace) -> None:
    """PCI Local Bus 3.0 §6.2.5.1: all ones are written, the bits that stay zero are the size."""
    config.add_memory_bar(0x8000, 0xC001_0000)
    assert config.read_config(BAR0, 4) == 0xC001_0004
    for half in (0, 4):
        config.write_config(BAR0 + half, 4, 0xFFFF_FFFF)
    assert config.read_config(BAR0, 4) == 0xFFFF_8004
    assert config.read_config(BAR0 + 4, 4) == 0xFFFF_FFFF
    config.write_config(BAR0, 4, 0x1_2345 << 12)
    config.write_config(BAR0 + 4, 4, 0x7F)
    assert config.bar_base == 0x7F_1234_0000
    config.write_config(BAR0 + 1, 1, 0x80)
    assert config.bar_base == 0x7F_1234_8000


def test_capabilities_are_a_list(config: ConfigSpace) -> None:
    assert not config.read_config(STATUS, 2)
    first = config.add_capability(0x05, b"\x01\x02\x03")
    second = config.add_capability(0x09, bytes(2))
    assert config.read_config(STATUS, 2) == 1 << 4
    assert config.read_config(0x34, 1) == first
    assert config.read_config(first, 4) == 0x02_01_00_05 | second << 8
    assert config.read_config(first + 4, 1) == 3
    assert config.read_config(second, 2) == 0x00_09
    assert first % 4 == second % 4 == 0


def test_a_capability_that_does_not_fit(config: ConfigSpace) -> None:
    config.add_capability(0x09, bytes(0xC0 - 2))
    with pytest.raises(ValueError, match="does not fit"):
        config.add_capability(0x09, b"\0")


def test_the_interrupt_line_is_softwares_own(config: ConfigSpace) -> None:
    config.add_interrupt(17)
    assert config.read_config(0x3C, 2) == 0x01_11
    config.write_config(0x3C, 2, 0x05_05)
    assert config.read_config(0x3C, 2) == 0x01_05
