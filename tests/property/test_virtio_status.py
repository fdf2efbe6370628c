"""Properties of the device status field and of negotiation, over all orders of writes."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import GuestFault
from vmm.virtio.spec import Status
from vmm.virtio.status import StatusMachine, Step

WRITES = st.lists(st.one_of(st.sampled_from([0, 1, 3, 11, 15, 64, 79, 128]), st.integers(0, 0xFFFF_FFFF)), max_size=30)


@given(WRITES)
def test_bits_come_in_order_and_go_only_together(writes: list[int]) -> None:
    """VIRTIO 1.2 §2.1.1: "The driver MUST update device status, setting bits to indicate the completed steps of the
    driver initialization sequence specified in 3.1. The driver MUST NOT clear a device status bit."
    """
    machine = StatusMachine()
    order = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)
    for value in writes:
        before = machine.value
        try:
            step = machine.write(value)
        except GuestFault:
            assert machine.value == before
            continue
        if value == 0:
            assert (machine.value, step) == (0, Step.RESET)
            continue
        assert machine.value & before == before, "a bit was cleared"
        present = [bool(machine.value & bit) for bit in order]
        assert present == sorted(present, reverse=True), "a step was left out"
        assert (step == Step.ACTIVATE) == bool(machine.value & ~before & Status.DRIVER_OK)
        assert (step == Step.CHECK_FEATURES) == bool(machine.value & ~before & Status.FEATURES_OK)


@given(WRITES, WRITES)
def test_needs_reset_lasts_until_the_reset(before: list[int], after: list[int]) -> None:
    """VIRTIO 1.2 §2.1.2: "The device SHOULD set DEVICE_NEEDS_RESET when it enters an error state that a reset is
    needed." §2.1.1: "A good implementation will try to recover by issuing a reset."
    """
    machine = StatusMachine()
    for value in before:
        _write(machine, value)
    machine.need_reset()
    live = machine.driver_ok
    for value in after:
        _write(machine, value)
        if value == 0:
            assert not machine.broken
            return
        assert machine.broken
        assert machine.driver_ok == live


def _write(machine: StatusMachine, value: int) -> None:
    with contextlib.suppress(GuestFault):
        machine.write(value)
