"""The status machine: every transition of the table, and that there are no others."""

from __future__ import annotations

import itertools

import pytest

from vmm.errors import GuestFault
from vmm.virtio.spec import Status
from vmm.virtio.status import TRANSITIONS, StatusMachine, Step

BITS = (Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK)


def at(value: int) -> StatusMachine:
    machine = StatusMachine()
    machine.value = value
    return machine


def test_the_way_linux_goes() -> None:
    machine = StatusMachine()
    steps = [machine.write(value) for value in (0, 1, 3, 11, 15)]
    assert steps == [Step.RESET, Step.NOTHING, Step.NOTHING, Step.CHECK_FEATURES, Step.ACTIVATE]
    assert machine.value == 15
    assert machine.features_ok
    assert machine.driver_ok


@pytest.mark.parametrize("current", sorted({before for before, _ in TRANSITIONS}))
@pytest.mark.parametrize("wanted", [sum(bits) for n in range(1, 5) for bits in itertools.combinations(BITS, n)])
def test_only_the_table_moves_it(current: int, wanted: int) -> None:
    machine = at(current)
    if (current, wanted) in TRANSITIONS:
        assert machine.write(wanted) == TRANSITIONS[current, wanted]
        assert machine.value == wanted
    else:
        with pytest.raises(GuestFault):
            machine.write(wanted)
        assert machine.value == current


def test_refused_features_can_be_tried_again() -> None:
    machine = at(3)
    assert machine.write(11) == Step.CHECK_FEATURES
    machine.refuse_features()
    assert machine.value == 3
    assert machine.write(11) == Step.CHECK_FEATURES


@pytest.mark.parametrize("current", [0, 1, 3, 11, 15])
def test_failed_is_reached_from_anywhere_and_left_by_reset_only(current: int) -> None:
    machine = at(current)
    assert machine.write(current | Status.FAILED) == Step.STOP
    assert machine.value == current | Status.FAILED
    assert machine.broken
    with pytest.raises(GuestFault):
        machine.write(15)
    assert machine.write(0) == Step.RESET
    assert machine.value == 0


def test_needs_reset_is_the_devices_own_bit() -> None:
    machine = at(15)
    machine.need_reset()
    assert machine.write(15 | Status.DEVICE_NEEDS_RESET) == Step.NOTHING  # as a read-modify-write does
    assert machine.write(15) == Step.NOTHING
    assert machine.value == 15 | Status.DEVICE_NEEDS_RESET
    machine.write(0)
    assert machine.value == 0


def test_nothing_starts_while_a_reset_is_due() -> None:
    machine = at(11)
    machine.need_reset()
    with pytest.raises(GuestFault):
        machine.write(15)
    assert not machine.driver_ok


@pytest.mark.parametrize("value", [16, 32, 1 | 16, 0x100, 0xFFFF_FF0F & ~0x80])
def test_unknown_bits_are_refused(value: int) -> None:
    with pytest.raises(GuestFault):
        StatusMachine().write(value)
