"""The guest has the right time, from the RTC on."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest

#: Reading the RTC waits for its second to begin, and the console takes its time.
TOLERANCE_S = 5


def test_the_rtc_is_right(guest: LinuxGuest) -> None:
    told = guest.run("hwclock -u")[:24]  # Fri Nov 20 20:59:54 2026  0.000000 seconds
    there = datetime.strptime(told, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    assert abs(there.timestamp() - time.time()) < TOLERANCE_S


def test_the_system_clock_is_right_and_runs(guest: LinuxGuest) -> None:
    first = int(guest.run("date +%s"))
    assert abs(first - time.time()) < TOLERANCE_S
    guest.run("sleep 2")
    assert 2 <= int(guest.run("date +%s")) - first < 2 + TOLERANCE_S
