"""The ports for guests that are tests: debug exit, debug console, panic."""

from __future__ import annotations

import pytest

from tests.fakes.lines import Sink
from vmm.bus import Bus
from vmm.devices import debugexit
from vmm.devices.debugcon import DebugConsole
from vmm.devices.debugexit import DebugExit
from vmm.devices.pvpanic import CRASH_LOADED, PANICKED, PvPanic


@pytest.mark.parametrize(("size", "value"), [(1, 0x2A), (2, 0x1234), (4, 0xDEAD_BEEF)])
def test_debug_exit_passes_on_what_is_written(size: int, value: int) -> None:
    left: list[int] = []
    bus = Bus("pio")
    bus.attach(0xF4, debugexit.SIZE, DebugExit(left.append))
    bus.write(0xF4, size, value)
    assert left == [value]
    assert bus.read(0xF4, size) == 0


def test_pvpanic_says_which_events_it_knows_and_reports_them() -> None:
    events: list[int] = []
    bus = Bus("pio")
    bus.attach(0x505, 1, PvPanic(events.append))
    assert bus.read(0x505, 1) == PANICKED | CRASH_LOADED
    for value in (PANICKED, CRASH_LOADED, 0, 0xFC, 0xFF):
        bus.write(0x505, 1, value)
    assert events == [PANICKED, CRASH_LOADED, PANICKED | CRASH_LOADED]


def test_the_debug_console_prints_and_is_found_by_its_number() -> None:
    sink = Sink()
    bus = Bus("pio")
    bus.attach(0xE9, 1, DebugConsole(sink))
    assert bus.read(0xE9, 1) == 0xE9
    for byte in b"hi":
        bus.write(0xE9, 1, byte)
    assert sink.taken == b"hi"


def test_the_debug_console_drops_what_the_host_does_not_take() -> None:
    sink = Sink()
    device = DebugConsole(sink)
    sink.full = True
    device.write(0, 1, 0x41)
    sink.full = False
    device.write(0, 1, 0x42)
    assert sink.taken == b"B"
