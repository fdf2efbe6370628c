"""Programs that run at the same time do not get at each other's registers.

A C library picks its memcpy by what the processor says it has, up to AVX-512, and whoever switches between two
programs must keep all of that for them. What is lost shows at once: two programs that start together set up their
thread-local storage by memcpy, each copy interrupted by a page fault, and die of it.
"""

from __future__ import annotations

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest

PAIRS = 8


def test_programs_that_start_together_both_run(guest: LinuxGuest) -> None:
    """On the same CPU, so that one has to make way for the other."""
    pair = "/bin/busybox sleep 0.1 | /bin/busybox sleep 0.1 || echo failed"
    assert guest.run(f"taskset 1 sh -c 'for n in $(seq {PAIRS}); do {pair}; done' 2>&1", 120) == ""
