"""The guest learns of its devices from ACPI."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.guest.booted import Booted

pytestmark = pytest.mark.guest


def test_devices_are_found_through_acpi_alone(small: Booted) -> None:
    """LNRO0005 is virtio-mmio's name in ACPI; the kernel could also be told of devices by `virtio_mmio.device=`."""
    with closing(small.go_on()) as guest:
        assert "virtio_mmio" not in guest.run("cat /proc/cmdline")
        found = guest.run("ls -d /sys/bus/acpi/devices/LNRO0005:*").split()
        assert len(found) == len(guest.run("ls -d /sys/bus/virtio/devices/*").split()) == 5
