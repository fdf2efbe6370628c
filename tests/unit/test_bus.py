"""The bus: who answers where."""

from __future__ import annotations

import threading

import pytest

from vmm.bus import Bus
from vmm.trace import Tally


class Probe:
    """A device that notes what it is asked, and answers with more than fits."""

    def __init__(self, name: str = "probe") -> None:
        self.name = name
        self.lock = threading.Lock()
        self.calls: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        assert self.lock.locked()
        self.calls.append(("read", offset, size))
        return -1

    def write(self, offset: int, size: int, value: int) -> None:
        assert self.lock.locked()
        self.calls.append(("write", offset, size, value))

    def register_name(self, offset: int) -> str:
        return f"R{offset}"


def test_a_device_sees_offsets_and_its_lock_is_held() -> None:
    bus, device = Bus("pio"), Probe()
    bus.attach(0x100, 8, device)
    assert bus.read(0x104, 2) == 0xFFFF  # cut to the width
    bus.write(0x107, 1, 0x55)
    assert device.calls == [("read", 4, 2), ("write", 7, 1, 0x55)]
    assert not device.lock.locked()


@pytest.mark.parametrize(("address", "size"), [(0xFF, 1), (0x108, 1), (0x107, 2), (0xFF, 2), (0, 8)])
def test_what_nobody_claims_wholly_reads_ones_swallows_writes_and_is_counted(address: int, size: int) -> None:
    tally = Tally()
    bus, device = Bus("mmio", tally), Probe()
    bus.attach(0x100, 8, device)
    assert bus.read(address, size) == (1 << 8 * size) - 1
    bus.write(address, size, 0)
    assert device.calls == []
    assert tally.counts == {"unclaimed": 2}


def test_an_empty_bus_answers_too() -> None:
    assert Bus("pio").read(0x80, 1) == 0xFF


def test_neighbours_do_not_mix() -> None:
    bus, left, right = Bus("pio"), Probe("left"), Probe("right")
    bus.attach(0x108, 8, right)
    bus.attach(0x100, 8, left)
    bus.read(0x107, 1)
    bus.read(0x108, 1)
    assert left.calls == [("read", 7, 1)]
    assert right.calls == [("read", 0, 1)]
    assert bus.find(0x104, 8) is None


@pytest.mark.parametrize(("base", "size"), [(0x100, 8), (0x0F8, 9), (0x107, 1), (0x0F0, 0x100), (0x103, 2)])
def test_overlaps_are_refused_and_change_nothing(base: int, size: int) -> None:
    bus = Bus("pio")
    bus.attach(0x100, 8, Probe("first"))
    with pytest.raises(ValueError, match=r"pio: \w+ and \w+ overlap at 0x"):
        bus.attach(base, size, Probe("second"))
    found = bus.find(0x103)
    assert found is not None
    assert found[0].name == "first"


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="has no size"):
        Bus("pio").attach(0x100, size, Probe())


def test_a_device_can_be_in_several_places_and_leaves_them_all() -> None:
    bus, device = Bus("pio"), Probe()
    bus.attach(0x60, 1, device)
    bus.attach(0x64, 1, device)
    bus.detach(device)
    assert bus.find(0x60) is None
    assert bus.find(0x64) is None


def test_the_trace_names_bus_device_and_register() -> None:
    lines: list[str] = []
    bus = Bus("pio", trace=lines.append)
    bus.attach(0x100, 8, Probe())
    bus.read(0x101, 1)
    bus.write(0x102, 1, 0x2A)
    bus.read(0x200, 4)
    assert lines == [
        "pio read  probe.R1 -> 0xff",
        "pio write probe.R2 <- 0x2a",
        "pio read 0x200 size 4: nobody answers",
    ]
