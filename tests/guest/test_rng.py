"""The entropy device gives the guest bytes from the host."""

from __future__ import annotations

import pytest

from tests.guest.linux import LinuxGuest

pytestmark = pytest.mark.guest


def test_hwrng_gives_bytes_that_differ(guest: LinuxGuest) -> None:
    assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
    read = "dd if=/dev/hwrng of=/tmp/random bs=64 count=1 2>/dev/null; xxd -p /tmp/random; rm /tmp/random"
    first, second = guest.run(read), guest.run(read)
    assert len(first.replace("\n", "")) == 128
    assert first != second
