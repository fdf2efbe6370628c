"""Numbers of VIRTIO 1.2, under the standard's own names.

Features and flags are bit masks in plain classes: they are tested for every request, where `enum` is slow.
"""

from __future__ import annotations


class DeviceId:
    """Device types (VIRTIO 1.2 §5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    VSOCK = 19


class Status:
    """Device status bits (VIRTIO 1.2 §2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature:
    """Feature bits that every device type shares (VIRTIO 1.2 §6)."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


class DescFlag:
    """Descriptor flags (VIRTIO 1.2 §2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

DESCRIPTOR_SIZE = 16
#: A chain describes at most 2^32 bytes (VIRTIO 1.2 §2.7.5.2).
CHAIN_BYTES_MAX = 1 << 32


class Interrupt:
    """Why the device interrupts (VIRTIO 1.2 §4.2.2, InterruptStatus)."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2
