"""The data path of the network device in Python: the readable reference."""

from __future__ import annotations

from vmm.virtio.net_frame import Throttle
from vmm.virtio.net_rx import Receiver
from vmm.virtio.net_tx import Transmitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.config import NetLimits
    from vmm.eventloop import EventLoop
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.net import Uplink
    from vmm.virtio.net_frame import RxRules


class PythonPath:
    """Moves frames between the driver's queues and *uplink*, in the thread of *loop*. As `vmm.virtio.net.Path`."""

    own_workers = False

    def __init__(self, uplink: Uplink, loop: EventLoop) -> None:
        self._uplink, self._loop = uplink, loop
        self._rx, self._tx = Throttle(), Throttle()
        #: By the index of their queues; None where the driver has none.
        self._halves: list[Receiver | Transmitter | None] = []
        self._enabled = 0
        self._stands = False

    def set_limits(self, limits: NetLimits) -> None:
        """As `Path.set_limits`."""
        self._rx.change(limits.rx_bw, limits.rx_pps)
        self._tx.change(limits.tx_bw, limits.tx_pps)

    def start(self, name: str, active: ActiveDevice, pairs: int, rules: RxRules) -> None:
        """As `Path.start`."""
        for number, uplink in enumerate(self._uplink.queues[:pairs]):
            index = 2 * number
            queue = active.queues[index]
            receiver = None
            if queue is not None:
                receiver = Receiver(
                    name, uplink, self._loop, active=active, index=index, queue=queue, rules=rules, throttle=self._rx
                )
            transmitter = Transmitter(name, uplink, self._loop, active=active, index=index + 1, throttle=self._tx)
            self._halves += [receiver, transmitter]

    def enable(self, count: int) -> None:
        """As `Path.enable`."""
        before, self._enabled = self._enabled, count
        for half in self._halves[2 * count : 2 * before]:
            if half is not None:
                half.disable()
        self._uplink.enable(count)
        if not self._stands:
            self._enable_from(before)

    def _enable_from(self, first: int) -> None:
        """Let the enabled halves from pair *first* on do their work."""
        for half in self._halves[2 * first : 2 * self._enabled]:
            if half is not None:
                half.enable()

    def stand(self) -> None:
        """As `Path.stand`."""
        self._stands = True
        for half in self._halves:
            if half is not None:
                half.disable()
                half.give_up()

    def go_on(self) -> None:
        """As `Path.go_on`."""
        self._stands = False
        self._enable_from(0)

    def kick(self, index: int) -> None:
        """As `Path.kick`."""
        half = self._halves[index]
        if half is not None:
            half.resume()

    def rules_changed(self) -> None:
        """As `Path.rules_changed`: the halves look at the rules for every frame."""

    def rewire(self, index: int) -> None:
        """As `Path.rewire`: the transport's interrupts are used as they are."""

    def stop_queue(self, index: int) -> None:
        """As `Path.stop_queue`: the queue itself gives and takes no more."""

    def stop(self) -> None:
        """As `Path.stop`."""
        for half in self._halves:
            if half is not None:
                half.disable()
        self._halves = []
        self._enabled = 0
