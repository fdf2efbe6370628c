"""virtio block device (VIRTIO 1.2 §5.2): queues of requests for a disk image.

A request is le32 type, le32 reserved, le64 sector; then data; then one byte of status. Where the driver cuts that into
descriptors is its own business (§2.7.4): header and data may share one, each may be spread over several. The data of
a discard or of zeroes to write is one segment: le64 sector, le32 number of sectors, le32 flags.

=======  =========  ==================================================
offset   size       configuration space (§5.2.4)
=======  =========  ==================================================
0x00     le64       capacity, in sectors of 512 bytes
0x08     le32       size_max: not offered
0x0c     le32       seg_max: data descriptors in one request
0x10     4          geometry: not offered
0x14     le32       blk_size: what the guest should take for a block
0x18     8          topology: not offered
0x20     u8, u8     writeback: not offered; unused
0x22     le16       num_queues
0x24     le32 x 3   discards: sectors, segments, alignment in sectors
0x30     le32 x 2   zeroes: sectors, segments; u8 may_unmap, u8 x 3
=======  =========  ==================================================
"""

from __future__ import annotations

import os
import struct

from vmm.errors import BackendError
from vmm.virtio import chain
from vmm.virtio.bucket import TokenBucket
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from vmm.config import Rate
    from vmm.eventloop import EventLoop
    from vmm.state import State
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

        @property
        def can_discard(self) -> bool:
            """Whether `discard` works."""

        def preadv(self, views: Sequence[memoryview], offset: int) -> None:
            """Fill *views* with what is at *offset* (bytes)."""

        def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
            """Write *views* at *offset* (bytes)."""

        def flush(self) -> None:
            """Bring everything written to stable storage."""

        def discard(self, offset: int, size: int) -> None:
            """Give *size* bytes at *offset* back."""

        def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
            """Make *size* bytes at *offset* zero."""


SECTOR = 512
#: What one request may discard, and fill with zeroes, in bytes.
DISCARD_MAX, ZEROES_MAX = 1 << 30, 32 << 20
_unpack_header = struct.Struct("<I4xQ").unpack
_HEADER_SIZE = 16
_unpack_segment = struct.Struct("<QII").unpack
_SEGMENT_SIZE = 16
_UNMAP = 1
_CONFIG = struct.Struct("<QII4xI10xHIIIIIB3x")
_QUEUE_SIZE = 256
_ID_SIZE = 20


class BlkFeature:
    """VIRTIO 1.2 §5.2.3."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class RequestType:
    """VIRTIO 1.2 §5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class RequestStatus:
    """VIRTIO 1.2 §5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


_TYPE_NAMES = {value: name for name, value in vars(RequestType).items() if name.isupper()}
_STATUS_NAMES = ("OK", "IOERR", "UNSUPP")
_OPTIONAL = {RequestType.DISCARD: BlkFeature.DISCARD, RequestType.WRITE_ZEROES: BlkFeature.WRITE_ZEROES}


class BlkDevice(VirtioDevice):
    """A disk. Requests are done one after the other, in the thread that serves the queue.

    A write that fails is reported to the driver as an I/O error; with *on_stall* it stays in its queue instead, which
    is not served until `resume`, and *on_stall* is told why.
    """

    device_id = DeviceId.BLOCK

    def __init__(
        self,
        name: str,
        disk: Disk,
        loop: EventLoop,
        *,
        queues: int = 1,
        on_stall: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(name)
        self._disk, self._loop, self._on_stall = disk, loop, on_stall
        self.queue_sizes = (_QUEUE_SIZE,) * queues
        self._size_bytes = disk.size_bytes
        self.features = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH
        if queues > 1:
            self.features |= BlkFeature.MQ
        if disk.readonly:
            self.features |= BlkFeature.RO
        else:
            self.features |= BlkFeature.WRITE_ZEROES | (BlkFeature.DISCARD if disk.can_discard else 0)
        self.config += _CONFIG.pack(
            self._size_bytes // SECTOR,
            0,
            _QUEUE_SIZE - 2,  # every request has a header and a status descriptor besides its data
            SECTOR,
            queues,
            DISCARD_MAX // SECTOR,
            1,
            1,
            ZEROES_MAX // SECTOR,
            1,
            1,
        )
        self._iops, self._bandwidth = TokenBucket(), TokenBucket()
        self._active: ActiveDevice | None = None
        self._stalled = False
        self._waiting: set[int] = set()

    def set_limits(self, iops: Rate | None, bandwidth: Rate | None) -> None:
        """Let so many requests and bytes through from now on, in all queues together; None: no limit."""
        self._iops.set_rate(iops)
        self._bandwidth.set_rate(bandwidth)

    def resume(self) -> None:
        """Try again what failed; any thread."""
        active = self._active
        if active is not None:
            self._loop.call_soon(self._retry, active.lock)

    def _retry(self) -> None:
        self._stalled = False
        for fd in self._active.kick_fds if self._active is not None else ():
            os.eventfd_write(fd, 1)

    def activate(self, active: ActiveDevice) -> None:
        """As `VirtioDevice.activate`."""
        self._active = active

    def reset(self) -> None:
        """As `VirtioDevice.reset`."""
        self._active = None
        self._stalled = False

    def state(self) -> State:
        """As `VirtioDevice.state`: what the driver takes for granted of the disk."""
        return {"size_bytes": self._size_bytes}

    def restore(self, state: State) -> None:
        """As `VirtioDevice.restore`."""
        if state["size_bytes"] != self._size_bytes:
            raise ValueError(f"{self.name} has {self._size_bytes} bytes, and had {state['size_bytes']}")

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Do all requests in the queue, as far as the limits let it."""
        active.serve(index, self._serve, lambda: self._goes_on(active.kick_fds[index]))

    def _goes_on(self, kick_fd: int) -> bool:
        """Whether the next request may be done; if a limit is in the way, the queue is kicked when it no longer is."""
        if self._stalled:
            return False
        delay_s = max(self._iops.delay_s(), self._bandwidth.delay_s())
        if delay_s and kick_fd not in self._waiting:
            self._waiting.add(kick_fd)

            def kick() -> None:
                self._waiting.discard(kick_fd)
                os.eventfd_write(kick_fd, 1)

            self._loop.call_later(delay_s, kick)
        return not delay_s

    def _serve(self, active: ActiveDevice, request: DescriptorChain) -> int | None:
        """Do one request; how many bytes were written to the guest without a gap, as the used ring wants it."""
        if not request.writable_bytes:
            active.tally.count(f"{self.name}.malformed")
            return 0  # no room even for the status
        room = request.writable_bytes - 1
        data_in, status_at = chain.split(request.writable, room)
        status, read = self._perform(active, request, data_in, room)
        if self._stalled:
            return None
        status_at[0][0] = status
        return read + 1 if read == room else read

    def _perform(
        self, active: ActiveDevice, request: DescriptorChain, data_in: list[memoryview], room: int
    ) -> tuple[int, int]:
        """Do one request, with *room* bytes of *data_in* to read into; its `RequestStatus`, and the bytes read."""
        self._iops.take(1)
        if request.readable_bytes < _HEADER_SIZE:
            active.tally.count(f"{self.name}.malformed")
            return RequestStatus.IOERR, 0
        kind, sector = _unpack_header(chain.gather(request.readable, _HEADER_SIZE))
        length = room if kind == RequestType.IN else request.readable_bytes - _HEADER_SIZE
        self._bandwidth.take(length)
        status, read = RequestStatus.OK, 0
        try:
            if kind == RequestType.IN:
                if self._within(sector, length):
                    self._disk.preadv(data_in, sector * SECTOR)
                    read = length
                else:
                    status = RequestStatus.IOERR
            elif kind == RequestType.FLUSH:
                self._disk.flush()
            elif kind == RequestType.GET_ID:
                read = chain.scatter(data_in, self._disk.serial.ljust(_ID_SIZE, b"\0"))
            elif kind == RequestType.OUT or active.features & _OPTIONAL.get(kind, 0):
                status = self._change(active, kind, sector, chain.split(request.readable, _HEADER_SIZE)[1], length)
            else:
                status = RequestStatus.UNSUPP
        except BackendError as error:
            if self._stalled:
                return RequestStatus.IOERR, 0
            active.report(str(error))
            status = RequestStatus.IOERR
        self._account(active, kind, sector, length, status)
        return status, read

    def _change(self, active: ActiveDevice, kind: int, sector: int, data: list[memoryview], length: int) -> int:
        """Do a write, discard or write of zeroes with *length* bytes of *data*; its `RequestStatus`."""
        if kind != RequestType.OUT:
            if length != _SEGMENT_SIZE:
                return RequestStatus.IOERR
            sector, sectors, flags = _unpack_segment(chain.gather(data, _SEGMENT_SIZE))
            length = sectors * SECTOR
            if flags & ~(_UNMAP if kind == RequestType.WRITE_ZEROES else 0):
                return RequestStatus.UNSUPP
            if length > (ZEROES_MAX if kind == RequestType.WRITE_ZEROES else DISCARD_MAX):
                return RequestStatus.IOERR
        if self._disk.readonly or not self._within(sector, length):
            return RequestStatus.IOERR
        if not length:
            return RequestStatus.OK
        try:
            if kind == RequestType.OUT:
                self._disk.pwritev(data, sector * SECTOR)
            elif kind == RequestType.DISCARD:
                self._disk.discard(sector * SECTOR, length)
            else:
                self._disk.write_zeroes(sector * SECTOR, length, unmap=bool(flags & _UNMAP))
        except BackendError as error:
            if self._on_stall is not None:
                self._stalled = True
                self._on_stall(str(error))
            raise
        if not active.features & BlkFeature.FLUSH:
            # A driver that cannot flush relies on completed writes to be stable (VIRTIO 1.2 §5.2.6.2).
            self._disk.flush()
        return RequestStatus.OK

    def _within(self, sector: int, length: int) -> bool:
        """Whether *length* bytes from *sector* on are whole sectors of the disk."""
        return not length % SECTOR and sector * SECTOR + length <= self._size_bytes

    def _account(self, active: ActiveDevice, kind: int, sector: int, length: int, status: int) -> None:
        if kind == RequestType.IN:
            active.tally.count(f"{self.name}.read")
            active.tally.count(f"{self.name}.bytes_read", length)
        elif kind == RequestType.OUT:
            active.tally.count(f"{self.name}.write")
            active.tally.count(f"{self.name}.bytes_written", length)
        else:
            active.tally.count(f"{self.name}.{_TYPE_NAMES.get(kind, 'unsupported').lower()}")
        if status:
            active.tally.count(f"{self.name}.errors")
        if active.trace:
            name = _TYPE_NAMES.get(kind, f"type {kind:#x}")
            active.trace(f"{self.name} {name} sector {sector:#x} +{length} -> {_STATUS_NAMES[status]}")
