"""Transmitting in Python: frames from one transmit queue of the driver to one queue of an uplink."""

from __future__ import annotations

from vmm.virtio.net_frame import FRAME_MAX, FRAME_MIN, HEADER_SIZE

#: Who waits for room looks so often whether there is any.
_FULL_S = 0.001

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.eventloop import EventLoop
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.net import UplinkQueue
    from vmm.virtio.net_frame import Throttle


class Transmitter:
    """The driver's transmit queue *index*, while the device is live, in front of *uplink*."""

    def __init__(
        self, name: str, uplink: UplinkQueue, loop: EventLoop, *, active: ActiveDevice, index: int, throttle: Throttle
    ) -> None:
        self._name, self._uplink, self._loop = name, uplink, loop
        self._active, self._index = active, index
        self._throttle = throttle
        self._enabled = self._waiting = False

    def enable(self) -> None:
        """Send from now on."""
        self._enabled = True
        self.resume()

    def disable(self) -> None:
        """Leave the queue and the uplink alone, until `enable`."""
        self._enabled = False

    def give_up(self) -> None:
        """As `Receiver.give_up`: here nothing is ever in hand."""

    def resume(self) -> None:
        """Send what is in the queue."""
        if self._enabled and not self._waiting:
            self._active.serve(self._index, self._send, self._may_send)

    def _may_send(self) -> bool:
        """Whether the limits allow a frame now; if not, sending goes on by itself when they do."""
        delay_s = self._throttle.delay_s()
        if delay_s:
            self._wait(delay_s)
        return not delay_s

    def _wait(self, delay_s: float) -> None:
        self._waiting = True
        self._loop.call_later(delay_s, self._active.guarded(self._wait_is_over), self._active.lock)

    def _wait_is_over(self) -> None:
        self._waiting = False
        self.resume()

    def _send(self, active: ActiveDevice, frame: DescriptorChain) -> int | None:
        """Send one frame. What the host does not take is dropped, as on any wire; if it has no room yet, that waits."""
        size = frame.readable_bytes - HEADER_SIZE
        sent = FRAME_MIN <= frame.readable_bytes <= FRAME_MAX and self._uplink.writev(frame.readable)
        if sent is None:
            self._wait(_FULL_S)
            return None
        active.tally.count(f"{self._name}.{'tx' if sent else 'tx_dropped'}")
        if sent:
            active.tally.count(f"{self._name}.bytes_sent", size)
            self._throttle.account(size)
        if active.trace:
            active.trace(f"{self._name} tx {size} bytes -> {'sent' if sent else 'dropped'}")
        return 0
