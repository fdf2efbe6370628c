"""The generation id: other bytes in each copy of a guest, and word of that."""

from __future__ import annotations

from contextlib import closing

from tests.fakes.lines import CountingIrq
from vmm import layout
from vmm.devices.vmgenid import GenerationId
from vmm.memory import GuestMemory


def test_a_guest_has_one_of_its_own_and_another_when_it_is_a_copy() -> None:
    irq = CountingIrq()
    with closing(GuestMemory(16 << 20)) as memory:
        generation = GenerationId(memory, irq)
        generation.renew()
        first = memory.read(layout.GENERATION_ID, 16)
        assert irq.pulses == 0
        generation.renew()
        generation.notify()
        assert irq.pulses == 1
        assert len({first, memory.read(layout.GENERATION_ID, 16), bytes(16)}) == 3
        assert memory.read(layout.GENERATION_ID + 16, 16) == bytes(16)
