"""virtio block device (VIRTIO 1.2 §5.2): one queue of reads, writes and flushes of a disk image.

A request is le32 type, le32 reserved, le64 sector; then data; then one byte of status. Where the driver cuts that into
descriptors is its own business (§2.7.4): header and data may share one, each may be spread over several.

=======  =========  ==================================================
offset   size       configuration space (§5.2.4)
=======  =========  ==================================================
0x00     le64       capacity, in sectors of 512 bytes
0x08     le32       size_max: not offered
0x0c     le32       seg_max: data descriptors in one request
0x10     4          geometry: not offered
0x14     le32       blk_size: what the guest should take for a block
=======  =========  ==================================================
"""

from __future__ import annotations

import struct

from vmm.errors import BackendError
from vmm.virtio import chain
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice

    class Disk(Protocol):
        """A disk image, as `vmm.host.disk.raw.RawDisk`. The methods raise `BackendError`."""

        @property
        def size_bytes(self) -> int:
            """The capacity: a multiple of 512."""

        @property
        def readonly(self) -> bool:
            """Whether it can only be read."""

        @property
        def serial(self) -> bytes:
            """At most 20 bytes of ASCII."""

        def preadv(self, views: Sequence[memoryview], offset: int) -> None:
            """Fill *views* with what is at *offset* (bytes)."""

        def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
            """Write *views* at *offset* (bytes)."""

        def flush(self) -> None:
            """Bring everything written to stable storage."""


SECTOR = 512
_unpack_header = struct.Struct("<I4xQ").unpack
_HEADER_SIZE = 16
_CONFIG = struct.Struct("<QII4xI")
_QUEUE_SIZE = 256
_ID_SIZE = 20


class BlkFeature:
    """VIRTIO 1.2 §5.2.3."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9


class RequestType:
    """VIRTIO 1.2 §5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class RequestStatus:
    """VIRTIO 1.2 §5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


_TYPE_NAMES = {RequestType.IN: "IN", RequestType.OUT: "OUT", RequestType.FLUSH: "FLUSH", RequestType.GET_ID: "GET_ID"}
_STATUS_NAMES = ("OK", "IOERR", "UNSUPP")


class BlkDevice(VirtioDevice):
    """A disk. Requests are done one after the other, in the thread that serves the queue."""

    device_id = DeviceId.BLOCK
    queue_sizes = (_QUEUE_SIZE,)

    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(name)
        self._disk = disk
        self._size_bytes = disk.size_bytes
        self.features = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH
        if disk.readonly:
            self.features |= BlkFeature.RO
        # Every request has a header and a status descriptor besides its data.
        self._config = _CONFIG.pack(self._size_bytes // SECTOR, 0, _QUEUE_SIZE - 2, SECTOR)
        self._counters = {
            RequestType.IN: (f"{name}.read", f"{name}.bytes_read"),
            RequestType.OUT: (f"{name}.write", f"{name}.bytes_written"),
        }

    @property
    def config(self) -> bytes:
        """The configuration space."""
        return self._config

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Do all requests in the queue."""
        active.serve(index, self._serve)

    def _serve(self, active: ActiveDevice, request: DescriptorChain) -> int:
        """Do one request; how many bytes were written to the guest without a gap, as the used ring wants it."""
        if not request.writable_bytes:
            active.tally.count(f"{self.name}.malformed")
            return 0  # no room even for the status
        room = request.writable_bytes - 1
        data_in, status_at = chain.split(request.writable, room)
        status, read = self._perform(active, request, data_in, room)
        status_at[0][0] = status
        return read + 1 if read == room else read

    def _perform(
        self, active: ActiveDevice, request: DescriptorChain, data_in: list[memoryview], room: int
    ) -> tuple[int, int]:
        """Do one request, with *room* bytes of *data_in* to read into; its `RequestStatus`, and the bytes read."""
        if request.readable_bytes < _HEADER_SIZE:
            active.tally.count(f"{self.name}.malformed")
            return RequestStatus.IOERR, 0
        kind, sector = _unpack_header(chain.gather(request.readable, _HEADER_SIZE))
        length = room if kind == RequestType.IN else request.readable_bytes - _HEADER_SIZE
        status, read = RequestStatus.OK, 0
        try:
            if kind == RequestType.IN:
                if self._within(sector, length):
                    self._disk.preadv(data_in, sector * SECTOR)
                    read = length
                else:
                    status = RequestStatus.IOERR
            elif kind == RequestType.OUT:
                if not self._disk.readonly and self._within(sector, length):
                    self._write(active, chain.split(request.readable, _HEADER_SIZE)[1], sector)
                else:
                    status = RequestStatus.IOERR
            elif kind == RequestType.FLUSH:
                self._disk.flush()
            elif kind == RequestType.GET_ID:
                read = chain.scatter(data_in, self._disk.serial.ljust(_ID_SIZE, b"\0"))
            else:
                status = RequestStatus.UNSUPP
        except BackendError as error:
            active.report(str(error))
            status = RequestStatus.IOERR
        self._account(active, kind, sector, length, status)
        return status, read

    def _write(self, active: ActiveDevice, data: list[memoryview], sector: int) -> None:
        self._disk.pwritev(data, sector * SECTOR)
        if not active.features & BlkFeature.FLUSH:
            # A driver that cannot flush relies on completed writes to be stable (VIRTIO 1.2 §5.2.6.2).
            self._disk.flush()

    def _within(self, sector: int, length: int) -> bool:
        """Whether *length* bytes from *sector* on are whole sectors of the disk."""
        return not length % SECTOR and sector * SECTOR + length <= self._size_bytes

    def _account(self, active: ActiveDevice, kind: int, sector: int, length: int, status: int) -> None:
        counters = self._counters.get(kind)
        if counters:
            active.tally.count(counters[0])
            active.tally.count(counters[1], length)
        else:
            active.tally.count(f"{self.name}.{_TYPE_NAMES.get(kind, 'unsupported').lower()}")
        if status:
            active.tally.count(f"{self.name}.errors")
        if active.trace:
            name = _TYPE_NAMES.get(kind, f"type {kind:#x}")
            active.trace(f"{self.name} {name} sector {sector:#x} +{length} -> {_STATUS_NAMES[status]}")
