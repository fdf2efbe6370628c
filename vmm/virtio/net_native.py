"""The data path of the network device in C: a worker for each queue pair (`vmm/native/net.c`), and what tells it what.

The workers take the kicks of their queues themselves and never the GIL. What the driver configures, and what it did
wrong, is Python's to decide.
"""

from __future__ import annotations

import os

from vmm.errors import BackendError
from vmm.native._engine import ffi, lib
from vmm.virtio import native
from vmm.virtio.net_frame import GUEST_SEGMENTS, NetFeature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.config import NetLimits, Rate
    from vmm.eventloop import EventLoop
    from vmm.native._engine import CData
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.net import Uplink
    from vmm.virtio.net_frame import RxRules

_KINDS = {"tap": lib.LINK_TAP, "packets": lib.LINK_PACKETS, "stream": lib.LINK_STREAM}
_COUNTERS = (
    (lib.NET_TX, "tx"),
    (lib.NET_TX_DROPPED, "tx_dropped"),
    (lib.NET_BYTES_SENT, "bytes_sent"),
    (lib.NET_RX, "rx"),
    (lib.NET_RX_DROPPED, "rx_dropped"),
    (lib.NET_RX_FILTERED, "rx_filtered"),
    (lib.NET_BYTES_RECEIVED, "bytes_received"),
)


class NativePath:
    """Moves frames between the driver's queues and *uplink*, in threads of its own. As `vmm.virtio.net.Path`.

    *loop* is where the workers' messages are taken.
    """

    own_workers = True

    def __init__(self, uplink: Uplink, loop: EventLoop) -> None:
        self._uplink, self._loop = uplink, loop
        self._net = ffi.gc(lib.net_open(), lib.net_close)
        self._pairs: list[CData] = []
        self._enabled = 0
        self._stands = False
        self._event_fd = -1

    def set_limits(self, limits: NetLimits) -> None:
        """As `Path.set_limits`."""
        lib.net_set_limits(self._net, _limit(limits.rx_bw, limits.rx_pps), _limit(limits.tx_bw, limits.tx_pps))

    def start(self, name: str, active: ActiveDevice, pairs: int, rules: RxRules) -> None:
        """As `Path.start`."""
        self._name, self._active, self._rules = name, active, rules
        self.rules_changed()
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.watch(self._event_fd, active.guarded(self._on_event), active.lock)
        regions = native.regions(active.memory)
        kind = _KINDS[self._uplink.kind]
        for number, uplink in enumerate(self._uplink.queues[:pairs]):
            halves = []
            for index in (2 * number, 2 * number + 1):
                queue = active.queues[index]
                halves += [native.ring_config(queue), native.wiring(active, index)] if queue else [ffi.NULL, ffi.NULL]
            pair = lib.net_pair_open(self._net, uplink.fileno(), kind, self._event_fd, regions, len(regions), *halves)
            if pair == ffi.NULL:
                raise MemoryError
            self._pairs.append(pair)

    def enable(self, count: int) -> None:
        """As `Path.enable`."""
        before, self._enabled = self._enabled, count
        for pair in self._pairs[count:before]:
            lib.net_pair_stop(pair)
        self._uplink.enable(count)
        for pair in self._pairs[before:count]:
            self._start(pair)

    def stand(self) -> None:
        """As `Path.stand`."""
        self._stands = True
        positions = ffi.new("uint16_t[4]")
        for number, pair in enumerate(self._pairs):
            lib.net_pair_stop(pair)
            lib.net_pair_positions(pair, positions)
            for half in range(2):
                queue = self._active.queues[2 * number + half]
                if queue is not None:
                    queue.go_on_at(positions[2 * half], positions[2 * half + 1])

    def go_on(self) -> None:
        """As `Path.go_on`."""
        self._stands = False
        for pair in self._pairs[: self._enabled]:
            self._start(pair)

    def kick(self, index: int) -> None:
        """As `Path.kick`: one that came as a register access, past the eventfd that the worker waits for."""
        os.eventfd_write(self._active.kick_fds[index], 1)

    def rules_changed(self) -> None:
        """As `Path.rules_changed`."""
        rules, card = self._rules, self._rules.filter
        lib.net_set_rules(
            self._net,
            ffi.new(
                "struct net_rules *",
                {
                    "mergeable": rules.mergeable,
                    "checksums": bool(rules.offloads & NetFeature.GUEST_CSUM),
                    "segments": bool(rules.offloads & GUEST_SEGMENTS),
                    "whole_max": rules.whole_max,
                    "promiscuous": card.promiscuous,
                    "all_multicast": card.all_multicast or card.multicast is None,
                    "all_unicast": card.all_unicast or card.unicast is None,
                    "no_multicast": card.no_multicast,
                    "no_unicast": card.no_unicast,
                    "no_broadcast": card.no_broadcast,
                    "address": _number(card.address),
                    "unicast_count": len(card.unicast or ()),
                    "multicast_count": len(card.multicast or ()),
                    "unicast": list(map(_number, card.unicast or ())),
                    "multicast": list(map(_number, card.multicast or ())),
                },
            ),
        )

    def rewire(self, index: int) -> None:
        """As `Path.rewire`."""
        wire = self._active.interrupts.wire(index)
        lib.net_pair_rewire(self._pairs[index // 2], bool(index % 2), wire.fd, wire.flag)

    def stop_queue(self, index: int) -> None:
        """As `Path.stop_queue`."""
        pair = self._pairs[index // 2]
        running = index // 2 < self._enabled
        lib.net_pair_stop(pair)
        lib.net_pair_forget(pair, bool(index % 2))
        if running:
            self._start(pair)

    def stop(self) -> None:
        """As `Path.stop`."""
        for pair in self._pairs:
            lib.net_pair_stop(pair)
            for which, what in _COUNTERS:
                times = lib.net_pair_counter(pair, which)
                if times:
                    self._active.tally.count(f"{self._name}.{what}", times)
            lib.net_pair_close(pair)
        self._pairs = []
        self._enabled = 0
        if self._event_fd >= 0:
            self._loop.unwatch(self._event_fd)
            os.close(self._event_fd)
            self._event_fd = -1

    def _start(self, pair: CData) -> None:
        if self._stands:
            return
        code = lib.net_pair_start(pair)
        if code:
            raise BackendError(f"cannot start a worker: {os.strerror(code)}", where=self._uplink.name)

    def _mend(self, index: int, code: int) -> None:
        """The uplink is lost, by the errno *code*."""
        try:
            self._active.report(self._uplink.queues[index].mend(code))
        except BackendError as error:
            self._active.report(str(error))
        else:  # have the worker wait for what is behind the descriptor now
            pair = self._pairs[index]
            lib.net_pair_stop(pair)
            lib.net_pair_take_error(pair)  # a kick may have led it to the same loss once more, meanwhile
            self._start(pair)

    def _on_event(self) -> None:
        """A worker has something to tell."""
        if self._event_fd < 0:  # stopped by another thread while the loop waited for the lock
            return
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:  # a stale event
            return
        fault = ffi.new("struct fault *")
        for index, pair in enumerate(self._pairs[: self._enabled]):
            code = lib.net_pair_take_error(pair)
            if code:
                self._mend(index, code)
            if lib.net_pair_take_fault(pair, fault):
                raise native.guest_fault(fault)


def _limit(bandwidth: Rate | None, frames: Rate | None) -> CData:
    """`struct net_limit`."""
    return ffi.new(
        "struct net_limit *",
        [number for rate in (bandwidth, frames) for number in ((rate.per_second, rate.burst) if rate else (0, 0))],
    )


def _number(address: bytes) -> int:
    return int.from_bytes(address, "little")
