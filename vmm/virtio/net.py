"""virtio network device (VIRTIO 1.2 §5.1): queue pairs in front of an uplink, and a control queue.

Every frame has a 12-byte `struct virtio_net_hdr` before it, for the guest as for a tap, so frames go through as they
are; only flags and num_buffers of received ones are the device's to set. This module is what the driver negotiates and
configures; the frames go by a `Path`, in Python (`vmm.virtio.net_python`) or in C (`vmm.virtio.net_native`).

The queues are receive and transmit of each pair in turn, then control, which a driver without MQ finds at index 2.

=======  =====  =====================================================
offset   size   configuration space (§5.1.4)
=======  =====  =====================================================
0x00     6      mac
0x06     le16   status: bit 0, link up; bit 1, announce yourself
0x08     le16   max_virtqueue_pairs
0x0a     le16   mtu
=======  =====  =====================================================
"""

from __future__ import annotations

import os
import struct

from vmm.errors import BackendError
from vmm.virtio.device import VirtioDevice
from vmm.virtio.net_control import Control
from vmm.virtio.net_filter import RxFilter
from vmm.virtio.net_frame import NetFeature, RxRules
from vmm.virtio.spec import DeviceId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from vmm.config import NetLimits
    from vmm.eventloop import EventLoop
    from vmm.state import State
    from vmm.virtio.device import ActiveDevice

    class UplinkQueue(Protocol):
        """One queue of an uplink, as `vmm.host.tap.TapQueue`: frames with a 12-byte header. Only `mend` may block."""

        def fileno(self) -> int:
            """Readable when a frame waits; a frame a read or write."""

        def readv(self, views: Sequence[memoryview]) -> int:
            """Take the next frame into *views*; its bytes, or 0 if none waits. `OSError` if the uplink is lost."""

        def writev(self, views: Sequence[memoryview]) -> bool | None:
            """Send the frame in *views*; whether the host took it, or None: it has no room now, try again soon."""

        def mend(self, code: int) -> str:
            """The uplink is lost, by the errno *code*: open it anew under the same descriptor, and say so.

            `BackendError` if that cannot be.
            """

    class Uplink(Protocol):
        """What a card is plugged into: `vmm.host.tap.Tap`, `vmm.host.uplink.Uplink`. Methods raise `BackendError`."""

        @property
        def name(self) -> str:
            """What the host calls it."""

        @property
        def kind(self) -> str:
            """How frames go: `tap`, `packets` or `stream` (`vmm/native/net_api.h`, `enum link_kind`)."""

        @property
        def queues(self) -> Sequence[UplinkQueue]:
            """One for each queue pair that the driver may use."""

        @property
        def has_offloads(self) -> bool:
            """Whether checksums and the segmentation of TCP may be left undone, either way."""

        @property
        def segments_udp(self) -> bool:
            """Whether UDP may be left to be segmented."""

        def enable(self, count: int) -> None:
            """Use the first *count* queues only."""

        def set_offload(self, flags: int) -> None:
            """Let frames come with the work named by *flags* (`TUN_F_*`) undone."""

    class Path(Protocol):
        """What moves the frames of one card. Called under the transport's lock."""

        #: Whether it waits for the kicks of its queues itself.
        own_workers: bool

        def set_limits(self, limits: NetLimits) -> None:
            """Keep to *limits* from now on; any time."""

        def start(self, name: str, active: ActiveDevice, pairs: int, rules: RxRules) -> None:
            """The driver is live and may use *pairs*; none is enabled yet."""

        def enable(self, count: int) -> None:
            """Use the first *count* pairs. `BackendError` if the uplink is gone."""

        def kick(self, index: int) -> None:
            """The driver has put something into queue *index*."""

        def rules_changed(self) -> None:
            """The rules given to `start` are other ones now."""

        def rewire(self, index: int) -> None:
            """The interrupt of queue *index* is another one now."""

        def stop_queue(self, index: int) -> None:
            """The driver takes queue *index* back."""

        def stop(self) -> None:
            """Touch guest memory and uplink no more."""

        def stand(self) -> None:
            """The same until `go_on`, also where `enable` comes meanwhile. Then the queues say where they go on; a
            received frame that is not with the driver yet may be lost."""

        def go_on(self) -> None:
            """Go on with the pairs that are enabled."""


_QUEUE_SIZE, _CONTROL_SIZE = 256, 64
_CONFIG = struct.Struct("<6sHHH")
_LINK_UP, _ANNOUNCE = 1, 2

# What a tap may leave undone for its reader (linux/if_tun.h), by the feature that allows it.
_TUN_FLAGS = (
    (NetFeature.GUEST_CSUM, 0x01),
    (NetFeature.GUEST_TSO4, 0x02),
    (NetFeature.GUEST_TSO6, 0x04),
    (NetFeature.GUEST_ECN, 0x08),
    (NetFeature.GUEST_USO4, 0x20),
    (NetFeature.GUEST_USO6, 0x40),
)
_FEATURES = (
    NetFeature.MAC | NetFeature.MTU | NetFeature.STATUS | NetFeature.MRG_RXBUF
    | NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
)  # fmt: skip
_OFFLOADS = (
    NetFeature.CSUM | NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_ECN
    | NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN
    | NetFeature.CTRL_GUEST_OFFLOADS
)  # fmt: skip
_USO = NetFeature.HOST_USO | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6


class NetDevice(VirtioDevice):
    """A network card on *uplink*, whose frames go by *path*. *mtu* is in bytes."""

    device_id = DeviceId.NET

    def __init__(self, name: str, uplink: Uplink, loop: EventLoop, path: Path, *, mac: bytes, mtu: int) -> None:
        super().__init__(name)
        self._uplink, self._loop, self._path = uplink, loop, path
        self._mac, self._mtu = mac, mtu
        self._pairs_max = len(uplink.queues)
        self.own_workers = path.own_workers
        self.queue_sizes = (*(_QUEUE_SIZE,) * (2 * self._pairs_max), _CONTROL_SIZE)
        self.features = _FEATURES | (NetFeature.MQ if self._pairs_max > 1 else 0)
        self.features |= (_OFFLOADS if uplink.has_offloads else 0) | (_USO if uplink.segments_udp else 0)
        self._status = _LINK_UP
        self._pairs = 1
        self._filter = RxFilter(mac, promiscuous=True)
        self._active: ActiveDevice | None = None
        self.config += bytes(_CONFIG.size)
        self._show_config()

    def activate(self, active: ActiveDevice) -> None:
        """Set the uplink's offloads to what the driver takes, and begin to receive."""
        features = active.features
        pairs = self._pairs_max if features & NetFeature.MQ else 1
        self._active = active
        self._filter = RxFilter(self._mac, promiscuous=not features & NetFeature.CTRL_RX)
        self._rules = RxRules(features, self._mtu, self._filter)
        self._control = Control(self.name, features, self, self._filter)
        self._control_index = 2 * pairs
        self._path.start(self.name, active, pairs, self._rules)
        self.set_offloads(self._rules.offloads)
        self.enable_pairs(1)
        if self.own_workers:
            self._loop.watch(active.kick_fds[self._control_index], active.guarded(self._on_control_kick), active.lock)

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Send what is in a transmit queue; receive again, now that there are buffers; carry out commands."""
        if index < self._control_index:
            self._path.kick(index)
        elif index == self._control_index and active.features & NetFeature.CTRL_VQ:
            active.serve(index, self._control.serve)

    def rewire(self, active: ActiveDevice, index: int) -> None:  # noqa: ARG002
        """As `VirtioDevice.rewire`."""
        if index < self._control_index:
            self._path.rewire(index)

    def stop_queue(self, active: ActiveDevice, index: int) -> None:  # noqa: ARG002
        """As `VirtioDevice.stop_queue`."""
        if index < self._control_index:
            self._path.stop_queue(index)

    def reset(self) -> None:
        """Stop moving frames, and forget what the driver set."""
        if self._active is not None:
            if self.own_workers:
                self._loop.unwatch(self._active.kick_fds[self._control_index])
            self._active = None
        self._path.stop()
        self._filter = RxFilter(self._mac, promiscuous=True)
        self._status = _LINK_UP
        self._show_config()

    def stand(self) -> None:
        """As `VirtioDevice.stand`."""
        self._path.stand()

    def go_on(self) -> None:
        """As `VirtioDevice.go_on`."""
        self._path.go_on()

    def state(self) -> State:
        """As `VirtioDevice.state`."""
        return {
            "filter": self._filter.state(),
            "status": self._status,
            "pairs": self._pairs,
            "offloads": self._rules.offloads,
        }

    def restore(self, state: State) -> None:
        """As `VirtioDevice.restore`."""
        self._filter.restore(state["filter"])
        self._status = int(state["status"]) & (_LINK_UP | _ANNOUNCE)
        self.filter_changed()
        if not self.enable_pairs(state["pairs"]) or not self.set_offloads(state["offloads"]):
            raise ValueError(f"{self.name} cannot go on with {state['pairs']} queue pairs")

    def announce(self) -> None:
        """Have the driver announce itself to its network, if it can: the uplink is at another place now."""
        active = self._active
        if active is not None and active.features & NetFeature.GUEST_ANNOUNCE:
            self._status |= _ANNOUNCE
            self._show_config()
            active.interrupts.config()

    def _show_config(self) -> None:
        self.generation += 1
        self.config[:] = _CONFIG.pack(self._filter.address, self._status, self._pairs_max, self._mtu)

    def _on_control_kick(self) -> None:
        if self._active is None:  # stopped by another thread while the loop waited for the lock
            return
        try:
            os.eventfd_read(self._active.kick_fds[self._control_index])
        except BlockingIOError:  # a stale event: somebody drained it already
            return
        self.notify(self._active, self._control_index)

    # What the driver commands.

    def filter_changed(self) -> bool:
        """As `Card.filter_changed`."""
        self._show_config()
        self._path.rules_changed()
        return True

    def acknowledge_announcement(self) -> bool:
        """As `Card.acknowledge_announcement`."""
        self._status &= ~_ANNOUNCE
        self._show_config()
        return True

    def enable_pairs(self, count: int) -> bool:
        """As `Card.enable_pairs`."""
        done = 1 <= count <= self._control_index // 2 and self._try(lambda: self._path.enable(count))
        self._pairs = count if done else self._pairs
        return done

    def set_offloads(self, offloads: int) -> bool:
        """As `Card.set_offloads`."""
        self._rules.offloads = offloads
        self._path.rules_changed()
        return self._try(lambda: self._uplink.set_offload(sum(flag for bit, flag in _TUN_FLAGS if offloads & bit)))

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except BackendError as error:
            if self._active is not None:
                self._active.report(str(error))
            return False
        return True
