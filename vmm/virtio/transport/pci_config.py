"""What the configuration space of a virtio device on PCI says: identity, BAR, capabilities (VIRTIO 1.2 §4.1.2, §4.1.4).

=========  ==========================================================
in BAR 0   region, a page each
=========  ==========================================================
`COMMON`   common configuration
`ISR`      interrupt status, read to clear
`DEVICE`   the device type's configuration space
`NOTIFY`   `NOTIFY_STRIDE` bytes for each queue, to kick it
`TABLE`    MSI-X table: a vector for the configuration, one for each queue
`PENDING`  MSI-X pending bits
=========  ==========================================================
"""

from __future__ import annotations

from vmm.devices.pci import msix
from vmm.devices.pci.config import COMMAND, Command, ConfigSpace
from vmm.virtio.spec import DeviceId

PAGE = 0x1000
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = range(0, 6 * PAGE, PAGE)
BAR_SIZE = 0x8000
NOTIFY_STRIDE = 4
COMMON_SIZE = 0x38
VENDOR, DEVICE_BASE = 0x1AF4, 0x1040
VENDOR_CAPABILITY = 0x09
_CLASS_CODES = {DeviceId.NET: 0x02_00_00, DeviceId.BLOCK: 0x01_80_00}
_OTHER_CLASS = 0xFF_00_00


class CapabilityType:
    """`cfg_type` of the vendor-specific capabilities (VIRTIO 1.2 §4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


# In the capability of type PCI, a window through which software without access to the BAR reaches it (§4.1.4.9).
_WINDOW_BAR, _WINDOW_OFFSET, _WINDOW_LENGTH, _WINDOW_DATA, _WINDOW_END = 4, 8, 12, 16, 20


class VirtioConfigSpace(ConfigSpace):
    """The configuration space of a device of type *device_id*; *base* and *gsi* are what firmware would have chosen."""

    __slots__ = ("_msix", "_window")

    def __init__(self, device_id: int, queues: int, base: int, gsi: int) -> None:
        super().__init__(
            vendor=VENDOR,
            device=DEVICE_BASE + device_id,
            revision=1,
            class_code=_CLASS_CODES.get(device_id, _OTHER_CLASS),
            subsystem=(VENDOR, DEVICE_BASE + device_id),
        )
        self.allow(COMMAND, 2, Command.MEMORY | Command.BUS_MASTER | Command.INTX_DISABLE)
        self.add_memory_bar(BAR_SIZE, base)
        self.add_interrupt(gsi)
        self._add_region(CapabilityType.COMMON, COMMON, COMMON_SIZE)
        self._add_region(CapabilityType.NOTIFY, NOTIFY, NOTIFY_STRIDE * queues, NOTIFY_STRIDE.to_bytes(4, "little"))
        self._add_region(CapabilityType.ISR, ISR, 1)
        self._add_region(CapabilityType.DEVICE, DEVICE, PAGE)
        self._window = self._add_region(CapabilityType.PCI, 0, 0, bytes(4))
        self.allow(self._window + _WINDOW_BAR, 1, 0xFF)
        self.allow(self._window + _WINDOW_OFFSET, 12, (1 << 96) - 1)
        self._msix = self.add_capability(msix.CAPABILITY, msix.capability(queues + 1, TABLE, PENDING))
        self.allow(self._msix + msix.CONTROL, 2, msix.ENABLE | msix.FUNCTION_MASK)

    def _add_region(self, kind: int, offset: int, length: int, more: bytes = b"") -> int:
        """Append a `struct virtio_pci_cap` for *length* bytes at *offset* of BAR 0."""
        body = bytes((16 + len(more), kind, 0, 0, 0, 0)) + offset.to_bytes(4, "little") + length.to_bytes(4, "little")
        return self.add_capability(VENDOR_CAPABILITY, body + more)

    @property
    def command(self) -> int:
        """The command register."""
        return self.get(COMMAND, 2)

    @property
    def msix_control(self) -> int:
        """The message control register of MSI-X."""
        return self.get(self._msix + msix.CONTROL, 2)

    # The window.

    def window(self, offset: int, size: int) -> tuple[int, int] | None:
        """Offset and size of the access to BAR 0 that one to these bytes stands for, if they are the window's data."""
        if offset + size <= self._window + _WINDOW_DATA or offset >= self._window + _WINDOW_END:
            return None
        bar = self.get(self._window + _WINDOW_BAR, 1)
        at, length = self.get(self._window + _WINDOW_OFFSET, 4), self.get(self._window + _WINDOW_LENGTH, 4)
        if bar or length not in (1, 2, 4) or at % length or at + length > BAR_SIZE:
            return None
        return at, length

    def window_data(self, size: int) -> int:
        """The first *size* bytes of the window's data."""
        return self.get(self._window + _WINDOW_DATA, size)

    def set_window_data(self, size: int, value: int) -> None:
        """Put *value* there."""
        self.set(self._window + _WINDOW_DATA, size, value)
