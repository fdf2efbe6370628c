"""What a virtio device is, without status, feature selection or transport; and what it has while it is live."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from vmm.memory import GuestMemory
    from vmm.state import State
    from vmm.trace import Tally, Trace
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.interrupts import Interrupts
    from vmm.virtio.queue import VirtQueue

#: What one turn of `ActiveDevice.serve` may cost, in bytes moved: a device with a full ring lets others have a turn.
TURN_BYTES = 4 << 20
#: What a request costs besides its bytes, as bytes.
REQUEST_BYTES = 16 << 10


class ActiveDevice:
    """A device that its driver has set going: what it has from `VirtioDevice.activate` until `VirtioDevice.reset`.

    Everything here is called under `lock`.
    """

    __slots__ = (
        "features",
        "guarded",
        "interrupts",
        "kick_fds",
        "lock",
        "memory",
        "queues",
        "report",
        "tally",
        "trace",
    )

    def __init__(
        self,
        *,
        memory: GuestMemory,
        features: int,
        queues: Sequence[VirtQueue | None],
        lock: threading.Lock,
        guarded: Callable[[Callable[[], None]], Callable[[], None]],
        interrupts: Interrupts,
        kick_fds: Sequence[int],
        report: Callable[[str], None],
        tally: Tally,
        trace: Trace | None,
    ) -> None:
        self.memory = memory
        #: What was negotiated.
        self.features = features
        #: The live queues, by index; None where the driver enabled none.
        self.queues = queues
        #: The device's lock, to register callbacks with the event loop; held in `activate`, `notify` and `reset`.
        self.lock = lock
        #: Wraps a callback of the event loop so that a `GuestFault` in it is contained as one in `notify` is.
        self.guarded = guarded
        #: Tells the user, at a limited rate, that the device's back end fails.
        self.report = report
        self.tally = tally
        self.trace = trace
        #: How to interrupt the driver; `serve` and `publish` do it for queues.
        self.interrupts = interrupts
        #: The eventfd that the driver's kicks of each queue signal.
        self.kick_fds = kick_fds

    def serve(
        self,
        index: int,
        handle: Callable[[ActiveDevice, DescriptorChain], int | None],
        goes_on: Callable[[], bool] | None = None,
    ) -> None:
        """Hand every buffer of queue *index* to *handle*, which returns how many bytes it wrote (None: put it back).

        *goes_on* is asked before each; when it says no, or a buffer was put back, the device sees to it that serving
        goes on, for no kick may come.
        The driver sees the results at the end, at once, and gets one interrupt at most. After `TURN_BYTES` the rest
        waits for the next turn of the event loop. When the driver broke the ring the buffers before that still count.

        Raises:
            GuestFault: the driver broke the ring.
        """
        queue = self.queues[index]
        if queue is None:
            return
        credit = TURN_BYTES
        queue.suppress_kicks()
        try:
            while True:
                while credit > 0:
                    if goes_on is not None and not goes_on():
                        return
                    chain = queue.pop()
                    if chain is None:
                        break
                    written = handle(self, chain)
                    if written is None:
                        queue.unpop()
                        return
                    queue.push(chain.head, written)
                    credit -= REQUEST_BYTES + chain.readable_bytes + chain.writable_bytes
                else:
                    os.eventfd_write(self.kick_fds[index], 1)
                    return
                if queue.want_kicks():
                    return
        finally:
            self.publish(index)

    def publish(self, index: int) -> None:
        """Let the driver see what was pushed to queue *index*, and interrupt it if it wants that."""
        queue = self.queues[index]
        if queue is not None and queue.publish():
            self.interrupts.queue(index)


class VirtioDevice:
    """One device type. Single-threaded: every call holds the transport's lock."""

    #: VIRTIO 1.2 §5.
    device_id: int
    #: The largest size of each queue, in entries.
    queue_sizes: tuple[int, ...]
    #: The device type's own feature bits; the transport adds those of the ring.
    features: int = 0
    #: Whether workers of the device's own, from `activate` to `reset`, wait for the kicks: then nobody else does.
    own_workers = False

    def __init__(self, name: str) -> None:
        #: What users, traces and counters call it.
        self.name = name
        #: Raised whenever the configuration space changes, so that a driver can read it as a whole (§2.5.1).
        self.generation = 0
        #: The configuration space, of a size that never changes. The machine may let the driver read it without asking.
        self.config = bytearray()

    def read_config(self, offset: int, size: int) -> int:
        """*size* bytes of the configuration space at *offset*; zero where the device declares no field."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The driver writes to the configuration space; no field of ours is writable."""

    def activate(self, active: ActiveDevice) -> None:
        """The driver is ready; *active* may be used until `reset`."""

    def rewire(self, active: ActiveDevice, index: int) -> None:
        """What `active.interrupts.wire(index)` gives has changed. Only between `activate` and `reset`."""

    def stop_queue(self, active: ActiveDevice, index: int) -> None:
        """The driver takes queue *index* back: touch its memory no more. Only between `activate` and `reset`."""

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Queue *index* has buffers. Only between `activate` and `reset`; may come without need.

        Raises:
            GuestFault: the driver broke the ring; the transport stops the device.
        """

    def reset(self) -> None:
        """Let go of everything `activate` gave. When it returns the device touches guest memory no more."""

    # A machine that stands. Devices that only work when they are called need none of this.

    def stand(self) -> None:
        """Touch guest memory and the back end no more, until `go_on`; before `activate` too.

        What was begun is done when it returns, and `active.queues` say where each queue goes on.

        Raises:
            GuestFault: the driver broke a ring before that.
        """

    def go_on(self) -> None:
        """Go on."""

    def state(self) -> State:
        """What a driver that goes on would miss, the queues apart. Only while the device stands and is live."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from *state*. Only after `activate` of a device that stands.

        Raises:
            KeyError, TypeError, ValueError: it is no state of such a device.
        """
