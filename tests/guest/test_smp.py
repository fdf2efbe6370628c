"""A guest with two CPUs sees both, and both work at the same time."""

from __future__ import annotations

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest

SECONDS = 4
USER_HZ = 100


def user_ticks(guest: LinuxGuest) -> list[int]:
    """The time each CPU has spent in user programs, in 1/100 s."""
    return [int(line.split()[1]) for line in guest.run("grep ^cpu[0-9] /proc/stat").splitlines()]


def test_two_cpus_are_seen(guest: LinuxGuest) -> None:
    assert guest.run("nproc") == "2"
    assert guest.run("cat /sys/devices/system/cpu/online") == "0-1"


def test_both_work_at_once(guest: LinuxGuest) -> None:
    before = user_ticks(guest)
    loop = "sh -c 'while :; do :; done'"
    guest.run(f"taskset 1 timeout {SECONDS} {loop} & taskset 2 timeout {SECONDS} {loop} & wait")
    worked = [after - ticks for after, ticks in zip(user_ticks(guest), before, strict=True)]
    assert len(worked) == 2
    assert min(worked) > SECONDS * USER_HZ // 4, f"the CPUs worked {worked} ticks in {SECONDS} s"


def test_interrupts_arrive_on_either(guest: LinuxGuest) -> None:
    for mask in ("1", "2"):
        assert guest.run(f"taskset {mask} cat /proc/self/stat").split()[38] == str(int(mask) - 1)
