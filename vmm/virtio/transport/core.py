"""What every virtio transport has in common: status, negotiation, queue set-up, interrupt cause, containment."""

from __future__ import annotations

import os

from vmm.errors import GuestFault
from vmm.regs import RegisterBlock
from vmm.state import attributes, put_back
from vmm.virtio.device import ActiveDevice
from vmm.virtio.queue import QueueConfig
from vmm.virtio.report import Reporter
from vmm.virtio.spec import Feature
from vmm.virtio.status import StatusMachine, Step, status_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from typing import TypedDict, Unpack

    from vmm.memory import GuestMemory
    from vmm.state import State
    from vmm.trace import Tally, Trace
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.interrupts import Interrupts

    class Reporting(TypedDict):
        """Where a transport tells of its device: faults to the user, what is traced, what is counted."""

        on_fault: Callable[[str], None]
        trace: Trace | None
        tally: Tally


_RING_FEATURES = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX
_U32 = 0xFFFF_FFFF
_KEPT = ("device_features_select", "driver_features_select", "queue_select", "driver_features")


class TransportCore:
    """The state of one device as its driver sees it. The register faces read and write it, under *lock*.

    Everything here is driven by the guest. What is against the rules but harmless is ignored and counted; what leaves
    the device in doubt is a `GuestFault`: the device stops, asks for a reset, and tells the user once.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupts: Interrupts,
        lock: threading.Lock,
        *,
        kick_fds: Sequence[int],
        on_fault: Callable[[str], None],
        trace: Trace | None,
        tally: Tally,
    ) -> None:
        self.device = device
        self.features = device.features | _RING_FEATURES
        self.queues = [QueueConfig(size) for size in device.queue_sizes]
        self._memory, self._lock, self._kick_fds = memory, lock, kick_fds
        self.interrupts = interrupts
        self._trace, self._tally = trace, tally
        self._report = Reporter(device.name, on_fault, tally)
        self._status = StatusMachine()
        self._active: ActiveDevice | None = None
        self._bus_master = True
        self._forget()

    def _forget(self) -> None:
        """What the driver told us so far, back to its values at reset."""
        self.device_features_select = self.driver_features_select = self.queue_select = 0
        self.driver_features = 0
        self.interrupts.reset()
        for queue in self.queues:
            queue.reset()

    # Status.

    @property
    def status(self) -> int:
        """The device status field."""
        return self._status.value

    def write_status(self, value: int) -> None:
        """The driver writes *value* to the status field: carries out what that means."""
        try:
            step = self._status.write(value)
        except GuestFault as fault:
            self._ignore(str(fault))
            return
        if self._trace:
            self._trace(f"{self.device.name} status {status_names(value)}: {step}")
        if step == Step.RESET:
            self._stop()
            self._forget()
        elif step == Step.STOP:
            self._stop()
        elif step == Step.CHECK_FEATURES:
            if self.driver_features & ~self.features or not self.driver_features & Feature.VERSION_1:
                self._status.refuse_features()
                self._report(f"the driver's features {self.driver_features:#x} are refused, of {self.features:#x}")
        elif step == Step.ACTIVATE:
            self._contain(self._activate)

    @property
    def driver_ok(self) -> bool:
        """Whether the driver has set the device going."""
        return self._status.driver_ok

    def set_bus_master(self, on: bool) -> None:
        """Whether the device may touch guest memory at all. A live one that loses that stops and asks for a reset."""
        self._bus_master = on
        if not on and self._active is not None:
            self._contain(self._require_bus_master)

    def _require_bus_master(self) -> None:
        if not self._bus_master:
            raise GuestFault("the device is to work while it is no bus master")

    def _activate(self, positions: Sequence[Sequence[int] | None] = ()) -> None:
        """Set the device going, with each queue at its position: the next entries of its available and used rings."""
        self._require_bus_master()
        queues = [
            config.activate(self._memory, self.driver_features) if config.ready else None for config in self.queues
        ]
        for queue, position in zip(queues, positions, strict=False):
            if queue is not None and position is not None:
                queue.go_on_at(*position)
        self._active = ActiveDevice(
            memory=self._memory,
            features=self.driver_features,
            queues=queues,
            lock=self._lock,
            guarded=lambda callback: lambda: self._contain(callback),
            interrupts=self.interrupts,
            kick_fds=self._kick_fds,
            report=self._report,
            tally=self._tally,
            trace=self._trace,
        )
        self.device.activate(self._active)

    def _stop(self) -> None:
        if self._active is not None:
            self._active = None
            self.device.reset()

    def _contain(self, action: Callable[[], None]) -> None:
        """Do *action*; if the guest is at fault the device stops and asks for a reset (VIRTIO 1.2 §2.1.2)."""
        try:
            action()
        except GuestFault as fault:
            self._stop()
            self._status.need_reset()
            self._report(f"{fault}; the device waits for a reset")
            if self._status.driver_ok:
                self.interrupts.config()

    def _ignore(self, what: str) -> None:
        self._tally.count(f"{self.device.name}.ignored")
        if self._trace:
            self._trace(f"{self.device.name} ignored: {what}")

    # Features, 32 bits at a time.

    def read_device_features(self) -> int:
        """The offered bits of the selected half; zero for halves that do not exist."""
        return self.features >> 32 * self.device_features_select & _U32 if self.device_features_select < 2 else 0

    def read_driver_features(self) -> int:
        """What the driver has accepted of the selected half."""
        return self.driver_features >> 32 * self.driver_features_select & _U32 if self.driver_features_select < 2 else 0

    def write_driver_features(self, value: int) -> None:
        """The driver accepts the bits *value* of the selected half; too late once FEATURES_OK is set."""
        if self._status.features_ok:
            self._ignore("features after FEATURES_OK")
        elif self.driver_features_select < 2:
            shift = 32 * self.driver_features_select
            self.driver_features = self.driver_features & ~(_U32 << shift) | value << shift

    # Queues.

    @property
    def queue(self) -> QueueConfig | None:
        """The selected queue's configuration, to read; None if there is no such queue."""
        return self.queues[self.queue_select] if self.queue_select < len(self.queues) else None

    @property
    def open_queue(self) -> QueueConfig | None:
        """The selected queue's configuration, to write; None (counted) if the driver may not change it now."""
        queue = self.queue
        if queue is None or queue.ready or self._status.driver_ok or not self._status.features_ok:
            self._ignore(f"set-up of queue {self.queue_select}")
            return None
        return queue

    def set_queue_area(self, area: str, shift: int, value: int) -> None:
        """The driver writes 32 bits of the address of the selected queue's *area*, from bit *shift* on."""
        queue = self.open_queue
        if queue is not None:
            setattr(queue, area, getattr(queue, area) & ~(_U32 << shift) | value << shift)

    def write_queue_ready(self, value: int) -> None:
        """The driver enables the selected queue, or takes it back.

        A queue taken back while the device is live stays stopped until the device is reset.
        """
        if value == 1:
            queue = self.open_queue
            if queue is not None:
                queue.ready = True
        elif value == 0 and self.queue is not None:
            self.queue.ready = False
            active = self._active
            live = active.queues[self.queue_select] if active is not None else None
            if active is not None and live is not None:
                live.stop()
                self.device.stop_queue(active, self.queue_select)

    def notify(self, index: int) -> None:
        """The driver kicked queue *index* (or thinks it did)."""
        active = self._active
        if active is None or index >= len(active.queues):
            self._ignore(f"kick of queue {index}")
            return
        self._contain(lambda: self.device.notify(active, index))

    def rewire(self, index: int) -> None:
        """The interrupt of queue *index* goes another way from now on."""
        if self._active is not None and self._active.queues[index] is not None:
            self.device.rewire(self._active, index)

    def close(self) -> None:
        """Stop the device for good."""
        self._stop()

    # A machine that stands.

    def stand(self) -> None:
        """Let the device come to a stand; what it finds wrong on the way is contained."""
        self._contain(self.device.stand)

    def go_on(self) -> None:
        """Let the device go on."""
        self._contain(self.device.go_on)

    def state(self) -> State:
        """Everything the driver has set, and where the device is. Only while it stands."""
        active = self._active
        return attributes(self, _KEPT) | {
            "status": self._status.value,
            "queues": [attributes(queue, QueueConfig.KEPT) for queue in self.queues],
            "active": None if active is None else [q and [q.next_avail, q.next_used] for q in active.queues],
            "device": {} if active is None else self.device.state(),
        }

    def restore(self, state: State) -> None:
        """Go on from *state*, with a device that stands.

        Raises:
            GuestFault: the driver's queues are not where they can be.
            KeyError, TypeError, ValueError: it is no state of this device.
        """
        put_back(self, _KEPT, state)
        lacking = self.driver_features & ~self.features
        if lacking:
            raise ValueError(f"{self.device.name} has features here that it had not: {lacking:#x}")
        for queue, kept in zip(self.queues, state["queues"], strict=True):
            put_back(queue, QueueConfig.KEPT, kept)
        self._status.value = int(state["status"])
        if state["active"] is not None:
            self._activate(state["active"])
            self.device.restore(state["device"])

    def revive(self) -> None:
        """After `restore`: an interrupt or a kick may have been on its way, so let both sides look at every queue."""
        active = self._active
        if active is None:
            return
        for index, queue in enumerate(active.queues):
            if queue is not None:
                os.eventfd_write(self._kick_fds[index], 1)
                self.interrupts.queue(index)


class Transport(RegisterBlock):
    """What the register faces have in common: the core, and an eventfd for the kicks of each queue.

    The machine hands `kick_fds` to KVM_IOEVENTFD and to the event loop (with `kick_callback`, under `lock`).
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupts: Interrupts,
        **reporting: Unpack[Reporting],
    ) -> None:
        super().__init__()
        self.name = device.name
        self.device = device
        self.kick_fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queue_sizes]
        self.core = TransportCore(device, memory, interrupts, self.lock, kick_fds=self.kick_fds, **reporting)

    def kick_callback(self, index: int) -> Callable[[], None]:
        """What the event loop calls, under `lock`, when `kick_fds[index]` is readable."""
        fd, notify = self.kick_fds[index], self.core.notify

        def kicked() -> None:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:  # a stale event: somebody drained it already
                return
            notify(index)

        return kicked

    def revive(self) -> None:
        """As `RegisterBlock.revive`."""
        self.core.revive()

    def close(self) -> None:
        """Stop the device and close the eventfds; the loop and KVM must have let go of them."""
        with self.lock:
            self.core.close()
        for fd in self.kick_fds:
            os.close(fd)
        self.kick_fds.clear()
