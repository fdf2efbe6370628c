"""Receiving in Python: frames from one queue of an uplink into one receive queue of the driver."""

from __future__ import annotations

import struct

from vmm.errors import BackendError
from vmm.virtio import chain
from vmm.virtio.net_frame import FRAME_MAX, GSO_TYPE, HEADER_SIZE, NUM_BUFFERS, PREFIX_SIZE, NetFeature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.eventloop import EventLoop
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.net import UplinkQueue
    from vmm.virtio.net_frame import RxRules, Throttle
    from vmm.virtio.queue import VirtQueue

#: Frames received in one turn of the event loop, and frames and buffers thrown away in search of one.
_TURN_FRAMES = 64
_pack_u16 = struct.Struct("<H").pack


class Receiver:
    """The driver's receive queue *index*, while the device is live, in front of *uplink*, which is watched in *loop*.

    The uplink is watched only while the driver has buffers: it stays readable as long as a frame waits. A frame is read
    into the next buffer and, where that is too small, into `_spill`; from there the rest goes into further buffers
    (MRG_RXBUF), which the driver may provide later.
    """

    def __init__(
        self,
        name: str,
        uplink: UplinkQueue,
        loop: EventLoop,
        *,
        active: ActiveDevice,
        index: int,
        queue: VirtQueue,
        rules: RxRules,
        throttle: Throttle,
    ) -> None:
        self._name, self._uplink, self._loop = name, uplink, loop
        self._active, self._index, self._queue = active, index, queue
        self._rules = rules
        self._throttle = throttle
        self._spill = memoryview(bytearray(FRAME_MAX))
        # The frame in hand: the buffers it has so far with the bytes in each, and what is still in the spill.
        self._buffers: list[tuple[DescriptorChain, int]] = []
        self._rest = self._spill[:0]
        self._enabled = self._watching = self._waiting = False

    def enable(self) -> None:
        """Begin to receive."""
        self._enabled = True
        self.resume()

    def disable(self) -> None:
        """Leave the uplink alone, until `enable`."""
        self._enabled = False
        self._unwatch()

    def give_up(self) -> None:
        """Let go of the frame in hand."""
        self._put_back()

    def resume(self) -> None:
        """Go on receiving: the driver may have provided buffers."""
        if not self._enabled or self._waiting:
            return
        if not self._watching:
            self._watching = True
            self._queue.suppress_kicks()
            self._loop.watch(self._uplink.fileno(), self._active.guarded(self._receive), self._active.lock)
        if self._buffers:  # a frame is in hand, so the uplink need not be readable
            self._receive()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.unwatch(self._uplink.fileno())

    def _receive(self) -> None:
        """Bring waiting frames to the driver: the event loop's callback."""
        if not self._watching:  # stopped by another thread while the loop waited for the lock
            return
        try:
            for _ in range(_TURN_FRAMES):
                if self._must_wait() or not (self._buffers or self._take()) or not self._complete():
                    return
        except OSError as error:
            self._queue.unpop()
            self._queue.want_kicks()
            self._unwatch()  # until the driver's next kick: a lost uplink stays readable
            self._mend(error.errno or 0)
        finally:
            self._active.publish(self._index)

    def _mend(self, code: int) -> None:
        try:
            self._active.report(self._uplink.mend(code))
        except BackendError as error:
            self._active.report(str(error))
        else:
            self.resume()

    def _must_wait(self) -> bool:
        """Whether the limits are reached; then receiving goes on by itself when they allow it."""
        delay_s = self._throttle.delay_s()
        if delay_s:
            self._waiting = True
            self._unwatch()
            self._loop.call_later(delay_s, self._active.guarded(self._wait_is_over), self._active.lock)
        return bool(delay_s)

    def _wait_is_over(self) -> None:
        self._waiting = False
        self.resume()

    def _take(self) -> bool:
        """Take the next good frame from the uplink in hand; False if there is none, or no buffer for it."""
        for _ in range(_TURN_FRAMES):
            buffer = self._next_buffer()
            if buffer is None:
                return False
            if buffer.writable_bytes < HEADER_SIZE:
                self._queue.push(buffer.head, 0)  # no buffer at all: back to the driver, empty
                continue
            size = self._uplink.readv([*buffer.writable, self._spill])
            written = min(size, buffer.writable_bytes)
            self._buffers = [(buffer, written)]
            self._rest = self._spill[: size - written]
            if not size:
                self._put_back()
                return False
            prefix = chain.gather([*buffer.writable, self._spill], PREFIX_SIZE)
            if not self._rules.takes_size(prefix[GSO_TYPE], size) or (self._rest and not self._rules.mergeable):
                self._drop("rx_dropped")
            elif not self._rules.filter.passes(prefix[HEADER_SIZE:]):
                self._drop("rx_filtered")
            else:
                return True
        return False

    def _complete(self) -> bool:
        """Bring the frame in hand to the driver as a whole; False if that must wait for more buffers."""
        while self._rest:
            if len(self._buffers) == self._queue.size:
                self._drop("rx_dropped")  # the driver's whole ring cannot hold it
                return True
            buffer = self._next_buffer()
            if buffer is None:
                return False
            written = chain.scatter(buffer.writable, self._rest)
            self._buffers.append((buffer, written))
            self._rest = self._rest[written:]
        header = self._buffers[0][0].writable
        if not self._rules.offloads & NetFeature.GUEST_CSUM:
            header[0][0] = 0  # flags say nothing that the driver did not ask for (VIRTIO 1.2 §5.1.6.4.1)
        chain.scatter(chain.split(header, NUM_BUFFERS)[1], _pack_u16(len(self._buffers)))
        size = -HEADER_SIZE
        for buffer, written in self._buffers:
            self._queue.push(buffer.head, written)
            size += written
        self._account("rx", size)
        self._active.tally.count(f"{self._name}.bytes_received", size)
        self._throttle.account(size)
        self._buffers = []
        return True

    def _next_buffer(self) -> DescriptorChain | None:
        """The driver's next buffer; None if there is none, and then its next kick leads to `resume`."""
        buffer = self._queue.pop()
        if buffer is None:
            if not self._queue.want_kicks():
                return self._queue.pop()
            self._unwatch()
        return buffer

    def _drop(self, why: str) -> None:
        self._account(why, sum(written for _, written in self._buffers) + len(self._rest) - HEADER_SIZE)
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
            self._active.trace(f"{self._name} {what} {size} bytes")
