"""The guest has the right time, from the RTC on."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest

#: Reading the RTC waits for its second to begin, and sets the system clock by it at the boot.
TOLERANCE_S = 3


def assert_right(ask: Callable[[], float]) -> float:
    """The time that *ask* tells, which is that of some moment while it was asked, however long that takes."""
    begun = time.time()
    told = ask()
    assert begun - TOLERANCE_S <= told <= time.time() + TOLERANCE_S
    return told


def test_the_rtc_is_right(guest: LinuxGuest) -> None:
    def rtc() -> float:
        told = guest.run("hwclock -u")[:24]  # Fri Nov 20 20:59:54 2026  0.000000 seconds
        return datetime.strptime(told, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC).timestamp()

    assert_right(rtc)


def test_the_system_clock_is_right_and_runs(guest: LinuxGuest) -> None:
    def clock() -> float:
        return int(guest.run("date +%s"))

    first = assert_right(clock)
    guest.run("sleep 2")
    assert assert_right(clock) - first >= 2


def test_the_clock_is_one_that_a_restore_puts_right(guest: LinuxGuest) -> None:
    assert guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "kvm-clock"
