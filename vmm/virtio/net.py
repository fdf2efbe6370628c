"""virtio network device (VIRTIO 1.2 §5.1): a receive and a transmit queue in front of a tap.

Every frame has a 12-byte `struct virtio_net_hdr` before it, for the guest as for the tap, so frames go through as they
are; only flags and num_buffers of received ones are the device's to set.

=======  =====  =====================================================
offset   size   configuration space (§5.1.4)
=======  =====  =====================================================
0x00     6      mac
0x06     le16   status: bit 0, link up
0x08     le16   max_virtqueue_pairs: not offered
0x0a     le16   mtu
=======  =====  =====================================================
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

    from vmm.eventloop import EventLoop
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.queue import VirtQueue

    class TapBackend(Protocol):
        """A tap, as `vmm.host.tap.Tap`: frames with a 12-byte header before them. Nothing here blocks."""

        def fileno(self) -> int:
            """Readable when a frame waits."""

        def readv(self, views: Sequence[memoryview]) -> int:
            """Take the next frame into *views*; its bytes, or 0 if none waits. `BackendError` if the tap is gone."""

        def writev(self, views: Sequence[memoryview]) -> bool:
            """Send the frame in *views*; whether the host took it."""

        def set_offload(self, flags: int) -> None:
            """Let frames come with the work named by *flags* (`TUN_F_*`) undone."""


RX, TX = 0, 1
_QUEUE_SIZE = 256
_CONFIG = struct.Struct("<6sHHH")
_STATUS_LINK_UP = 1
_pack_u16 = struct.Struct("<H").pack

HEADER_SIZE = 12
_NUM_BUFFERS = 10  # offset of num_buffers in the header
#: The largest frame: 64 KiB to be cut by the other side, with Ethernet and VLAN headers.
FRAME_MAX = HEADER_SIZE + 65535 + 18
_FRAME_MIN = HEADER_SIZE + 14
_VLAN_TAG = 4
_GSO_NONE = 0
#: Frames received in one turn of the event loop, and frames and buffers thrown away in search of one.
_TURN_FRAMES = 64

# What a tap may leave undone for its reader (linux/if_tun.h).
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4


class NetFeature:
    """VIRTIO 1.2 §5.1.3."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16


class NetDevice(VirtioDevice):
    """A network card on *tap*, which is watched in *loop*. *mtu* is in bytes."""

    device_id = DeviceId.NET
    queue_sizes = (_QUEUE_SIZE, _QUEUE_SIZE)
    features = (
        NetFeature.MAC | NetFeature.MTU | NetFeature.STATUS | NetFeature.MRG_RXBUF
        | NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6
        | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6
    )  # fmt: skip

    def __init__(self, name: str, tap: TapBackend, loop: EventLoop, *, mac: bytes, mtu: int) -> None:
        super().__init__(name)
        self._tap, self._loop = tap, loop
        self._mtu = mtu
        self._config = _CONFIG.pack(mac, _STATUS_LINK_UP, 1, mtu)
        self._receiver: _Receiver | None = None

    @property
    def config(self) -> bytes:
        """The configuration space."""
        return self._config

    def activate(self, active: ActiveDevice) -> None:
        """Set the tap's offloads to what the driver takes, and begin to receive."""
        flags = 0
        for feature, flag in (
            (NetFeature.GUEST_CSUM, _TUN_F_CSUM),
            (NetFeature.GUEST_TSO4, _TUN_F_TSO4),
            (NetFeature.GUEST_TSO6, _TUN_F_TSO6),
        ):
            if active.features & feature:
                flags |= flag
        self._set_offload(active, flags)
        queue = active.queues[RX]
        if queue is not None:
            self._receiver = _Receiver(self.name, self._tap, self._loop, active, queue, mtu=self._mtu)
            self._receiver.resume()

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Send what is in the transmit queue; or receive again, now that there are buffers."""
        if index == TX:
            active.serve(TX, self._transmit)
        elif self._receiver is not None:
            self._receiver.resume()

    def reset(self) -> None:
        """Stop receiving."""
        if self._receiver is not None:
            self._receiver.unwatch()
            self._receiver = None

    def _set_offload(self, active: ActiveDevice, flags: int) -> None:
        try:
            self._tap.set_offload(flags)
        except BackendError as error:
            active.report(str(error))

    def _transmit(self, active: ActiveDevice, frame: DescriptorChain) -> int:
        """Send one frame. What the host does not take is dropped, as on any wire."""
        size = frame.readable_bytes
        sent = _FRAME_MIN <= size <= FRAME_MAX and self._tap.writev(frame.readable)
        active.tally.count(f"{self.name}.{'tx' if sent else 'tx_dropped'}")
        if sent:
            active.tally.count(f"{self.name}.bytes_sent", size - HEADER_SIZE)
        if active.trace:
            active.trace(f"{self.name} tx {size - HEADER_SIZE} bytes -> {'sent' if sent else 'dropped'}")
        return 0


class _Receiver:
    """The receiving half while the device is live.

    The tap is watched only while the driver has buffers: it stays readable as long as a frame waits. A frame is read
    into the next buffer and, where that is too small, into `_spill`; from there the rest goes into further buffers
    (MRG_RXBUF), which the driver may provide later.
    """

    def __init__(
        self, name: str, tap: TapBackend, loop: EventLoop, active: ActiveDevice, queue: VirtQueue, *, mtu: int
    ) -> None:
        self._name, self._tap, self._loop = name, tap, loop
        self._active, self._queue = active, queue
        self._mergeable = bool(active.features & NetFeature.MRG_RXBUF)
        self._checksums = bool(active.features & NetFeature.GUEST_CSUM)
        self._segments = bool(active.features & (NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6))
        self._whole_max = _FRAME_MIN + _VLAN_TAG + mtu if active.features & NetFeature.MTU else FRAME_MAX
        self._spill = memoryview(bytearray(FRAME_MAX))
        # The frame in hand: the buffers it has so far with the bytes in each, and what is still in the spill.
        self._buffers: list[tuple[DescriptorChain, int]] = []
        self._rest = self._spill[:0]
        self._watching = False

    def resume(self) -> None:
        """Go on receiving: the driver may have provided buffers."""
        if not self._watching:
            self._watching = True
            self._queue.suppress_kicks()
            self._loop.watch(self._tap.fileno(), self._active.guarded(self._receive), self._active.lock)
        if self._buffers:  # a frame is in hand, so the tap need not be readable
            self._receive()

    def unwatch(self) -> None:
        """Leave the tap alone."""
        if self._watching:
            self._watching = False
            self._loop.unwatch(self._tap.fileno())

    def _receive(self) -> None:
        """Bring waiting frames to the driver: the event loop's callback."""
        if not self._watching:  # stopped by another thread while the loop waited for the lock
            return
        try:
            for _ in range(_TURN_FRAMES):
                if not (self._buffers or self._take()) or not self._complete():
                    return
        except BackendError as error:
            self._queue.unpop()
            self._queue.want_kicks()
            self.unwatch()  # until the driver's next kick: a broken tap stays readable
            self._active.report(str(error))
        finally:
            self._active.publish(RX)

    def _take(self) -> bool:
        """Take the next good frame from the tap in hand; False if there is none, or no buffer for it."""
        for _ in range(_TURN_FRAMES):
            buffer = self._next_buffer()
            if buffer is None:
                return False
            if buffer.writable_bytes < HEADER_SIZE:
                self._queue.push(buffer.head, 0)  # no buffer at all: back to the driver, empty
                continue
            size = self._tap.readv([*buffer.writable, self._spill])
            written = min(size, buffer.writable_bytes)
            self._buffers = [(buffer, written)]
            self._rest = self._spill[: size - written]
            if not size:
                self._put_back()
                return False
            if self._acceptable(buffer, size):
                return True
            self._drop()
        return False

    def _acceptable(self, first: DescriptorChain, size: int) -> bool:
        if size < _FRAME_MIN or (self._rest and not self._mergeable):
            return False
        if chain.gather(first.writable, HEADER_SIZE)[1] == _GSO_NONE:
            return size <= self._whole_max  # VIRTIO 1.2 §5.1.4.1
        # Frames to be segmented may be left from a driver that took them; this one must want them too (§5.1.6.4.1).
        return self._segments

    def _complete(self) -> bool:
        """Bring the frame in hand to the driver as a whole; False if that must wait for more buffers."""
        while self._rest:
            if len(self._buffers) == self._queue.size:
                self._drop()  # the driver's whole ring cannot hold it
                return True
            buffer = self._next_buffer()
            if buffer is None:
                return False
            written = chain.scatter(buffer.writable, self._rest)
            self._buffers.append((buffer, written))
            self._rest = self._rest[written:]
        header = self._buffers[0][0].writable
        if not self._checksums:
            header[0][0] = 0  # flags say nothing that the driver did not ask for (VIRTIO 1.2 §5.1.6.4.1)
        chain.scatter(chain.split(header, _NUM_BUFFERS)[1], _pack_u16(len(self._buffers)))
        size = 0
        for buffer, written in self._buffers:
            self._queue.push(buffer.head, written)
            size += written
        self._account("rx", size)
        self._active.tally.count(f"{self._name}.bytes_received", size - HEADER_SIZE)
        self._buffers = []
        return True

    def _next_buffer(self) -> DescriptorChain | None:
        """The driver's next buffer; None if there is none, and then its next kick leads to `resume`."""
        buffer = self._queue.pop()
        if buffer is None:
            if not self._queue.want_kicks():
                return self._queue.pop()
            self.unwatch()
        return buffer

    def _drop(self) -> None:
        self._account("rx_dropped", sum(written for _, written in self._buffers) + len(self._rest))
        self._put_back()

    def _put_back(self) -> None:
        """Give up the frame in hand; its buffers are the next ones again."""
        for _ in self._buffers:
            self._queue.unpop()
        self._buffers = []
        self._rest = self._spill[:0]

    def _account(self, what: str, size: int) -> None:
        self._active.tally.count(f"{self._name}.{what}")
        if self._active.trace:
            self._active.trace(f"{self._name} {what} {size - HEADER_SIZE} bytes")
