"""What is counted of a guest's exits."""

from __future__ import annotations

from typing import cast

from vmm.bus import Bus
from vmm.kvm.exits import MmioRead
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.runner import PLACES_MAX, VcpuRunner, count_exits, total_exits


class FakeVcpu:
    index = 0

    def reply_mmio(self, value: int) -> None:
        """Nobody reads it."""


def test_a_guest_that_touches_ever_new_addresses_does_not_grow_us() -> None:
    pio, mmio, memory = Bus("pio"), Bus("mmio"), cast("GuestMemory", None)
    runner = VcpuRunner(cast("Vcpu", FakeVcpu()), memory, pio=pio, mmio=mmio, on_end=print, assist=None, trace=None)
    times = 3 * PLACES_MAX
    for number in range(times):
        runner._handle(MmioRead(number << 12, 4))
    assert len(runner.exits) <= PLACES_MAX
    assert total_exits([runner], pio, mmio) == times
    counts: dict[str, int] = {}
    for _ in range(3):  # as over reboots
        counts = count_exits([runner], pio, mmio, counts)
        runner.exits = type(runner.exits)(int, {("out", port): 1 for port in range(PLACES_MAX)})
    assert len(counts) <= PLACES_MAX + 1
    assert sum(counts.values()) == times + 2 * PLACES_MAX
