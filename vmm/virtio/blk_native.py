"""The block device whose requests are done in C (vmm/native/blk.c), by a thread for each queue without the GIL."""

from __future__ import annotations

import os

from vmm.errors import BackendError, HostError
from vmm.native._engine import ffi, lib
from vmm.virtio import native
from vmm.virtio.blk import BlkDevice, BlkFeature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from typing_extensions import Buffer

    from vmm.config import Rate
    from vmm.eventloop import EventLoop
    from vmm.native._engine import CData
    from vmm.state import State
    from vmm.virtio import blk
    from vmm.virtio.device import ActiveDevice

    class FileDisk(blk.Disk, Protocol):
        """A disk image that is a file, as `vmm.host.disk.raw.RawDisk`."""

        #: The image, and what messages call it.
        fd: int
        path: str
        #: The image around the page cache, or -1, and what that wants of addresses, offsets and lengths.
        direct_fd: int
        alignment: int
        #: Whether a flush does anything.
        flushes: bool

        #: The files it is made of, where there are several (`vmm.host.disk.overlay.OverlayDisk`).
        @property
        def layers(self) -> Sequence[object]: ...


class NativeBlkDevice(BlkDevice):
    """A disk as `BlkDevice`. *io_uring* False: threads do what has to wait."""

    own_workers = True

    def __init__(
        self,
        name: str,
        disk: FileDisk,
        loop: EventLoop,
        *,
        queues: int = 1,
        on_stall: Callable[[str], None] | None = None,
        io_uring: bool = True,
    ) -> None:
        super().__init__(name, disk, loop, queues=queues, on_stall=on_stall)
        self._file = disk
        self._io_uring = io_uring
        self._limits: tuple[Rate | None, Rate | None] = (None, None)
        self._native: CData = None
        self._workers: dict[int, CData] = {}
        self._event_fd = -1
        self._stands = False

    def activate(self, active: ActiveDevice) -> None:
        """Start the workers.

        Raises:
            HostError: the host has no more threads or memory.
        """
        super().activate(active)
        disk, features = self._file, active.features
        self._native = lib.blk_open(
            ffi.new(
                "struct blk_config *",
                {
                    **_layers(disk),
                    "fd": disk.fd,
                    "direct_fd": disk.direct_fd,
                    "alignment": disk.alignment,
                    "size_bytes": disk.size_bytes,
                    "serial": disk.serial,
                    "readonly": disk.readonly,
                    "flush": disk.flushes,
                    "sync_writes": disk.flushes and not features & BlkFeature.FLUSH,
                    "discard": bool(features & BlkFeature.DISCARD),
                    "write_zeroes": bool(features & BlkFeature.WRITE_ZEROES),
                    "stop_on_error": self._on_stall is not None,
                    "io_uring": self._io_uring,
                },
            )
        )
        self._limit()
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.watch(self._event_fd, active.guarded(self._look), active.lock)
        if not self._stands:
            self._start_workers(active)

    def _start_workers(self, active: ActiveDevice) -> None:
        regions = native.regions(active.memory)
        for index, queue in enumerate(active.queues):
            if queue is not None:
                worker = lib.blk_start(
                    self._native,
                    native.ring_config(queue),
                    native.wiring(active, index),
                    regions,
                    len(regions),
                    self._event_fd,
                )
                if worker == ffi.NULL:
                    self.reset()
                    raise HostError(f"cannot start a disk's thread: {os.strerror(ffi.errno)}")
                self._workers[index] = worker

    def set_limits(self, iops: Rate | None, bandwidth: Rate | None) -> None:
        """As `BlkDevice.set_limits`."""
        self._limits = iops, bandwidth
        self._limit()

    def _limit(self) -> None:
        if self._native:
            rates = ((rate.per_second, rate.burst) if rate else (0, 0) for rate in self._limits)
            lib.blk_limit(self._native, *(number for rate in rates for number in rate))

    def notify(self, active: ActiveDevice, index: int) -> None:
        """A kick that came as an exit: hand it to the worker."""
        os.eventfd_write(active.kick_fds[index], 1)

    def rewire(self, active: ActiveDevice, index: int) -> None:
        """As `VirtioDevice.rewire`."""
        wire = active.interrupts.wire(index)
        if index in self._workers:
            lib.blk_rewire(self._workers[index], wire.fd, wire.flag)

    def _retry(self) -> None:
        for worker in self._workers.values():
            lib.blk_resume(worker)

    def stop_queue(self, active: ActiveDevice, index: int) -> None:  # noqa: ARG002
        """As `VirtioDevice.stop_queue`."""
        if index in self._workers:
            lib.blk_stop(self._workers[index])

    def reset(self) -> None:
        """As `VirtioDevice.reset`: what was begun is done when it returns."""
        active = self._active
        super().reset()
        if active is None:
            return
        for worker in self._workers.values():
            lib.blk_stop(worker)
        self._tell(active)
        counters = self.counters()
        for name, count in counters.items():
            if count:
                active.tally.count(f"{self.name}.{name}", count)
        for worker in self._workers.values():
            lib.blk_free(worker)
        self._workers.clear()
        lib.blk_close(self._native)
        self._native = None
        self._loop.unwatch(self._event_fd)
        os.close(self._event_fd)

    def stand(self) -> None:
        """As `VirtioDevice.stand`."""
        self._stands = True
        for index, worker in self._workers.items():
            lib.blk_stop(worker)
            queue = self._active.queues[index] if self._active is not None else None
            if queue is not None:
                queue.go_on_at(lib.blk_next_avail(worker), lib.blk_next_used(worker))

    def go_on(self) -> None:
        """As `VirtioDevice.go_on`."""
        self._stands = False
        active = self._active
        if active is None:
            return
        if not self._workers:
            self._start_workers(active)
            return
        for index, worker in self._workers.items():
            queue = active.queues[index]
            if queue is not None and not queue.stopped and (code := lib.blk_go_on(worker)):
                raise HostError(f"cannot start a disk's thread: {os.strerror(code)}")

    def state(self) -> State:
        """As `VirtioDevice.state`.

        Raises:
            BackendError: a write has failed and waits for `resume`.
        """
        if any(lib.blk_waits(worker) for worker in self._workers.values()):
            raise BackendError(
                "a write waits until it can be done", where=self._file.path, fix="make it possible, and resume the VM"
            )
        return super().state()

    def counters(self) -> dict[str, int]:
        """What the workers have counted since `activate`. Under the transport's lock."""
        counters = ffi.new("struct blk_counters *")
        for worker in self._workers.values():
            lib.blk_count(worker, counters)
        return {name: getattr(counters, name) for name in _COUNTERS}

    def _look(self) -> None:
        """A worker has something to tell."""
        try:
            os.eventfd_read(self._event_fd)
        except BlockingIOError:
            return
        if self._active is None:
            return
        self._tell(self._active)
        fault = ffi.new("struct fault *")
        for worker in self._workers.values():
            if lib.blk_take_fault(worker, fault):
                raise native.guest_fault(fault)

    def _tell(self, active: ActiveDevice) -> None:
        """Tell of what went wrong with the image."""
        event = ffi.new("struct blk_event *")
        for worker in self._workers.values():
            if lib.blk_take_event(worker, event):
                message = str(BackendError(_failure(event), where=self._file.path))
                if event.trouble == lib.BLK_STALLED and self._on_stall is not None:
                    self._on_stall(message)
                else:
                    active.report(message)


def _layers(disk: FileDisk) -> dict[str, Any]:
    """What the engine is to know of a disk of several files."""
    if not disk.layers:
        return {}
    from vmm.host.disk.overlay import OverlayDisk

    assert isinstance(disk, OverlayDisk)
    # SAFETY: the disk keeps the maps as long as it is open, and it is closed after the workers have ended.
    maps = {
        "layers": [(file.fd, ffi.NULL if own is None else _bytes(own)) for file, own in disk.layers],
        "layer_count": len(disk.layers),
        "failed": _bytes(disk.failed),
    }
    if disk.map_at is not None:
        maps |= {"map_at": disk.map_at, "map_pages": len(disk.dirty), "dirty": _bytes(disk.dirty)}
    return maps


def _bytes(buffer: Buffer) -> CData:
    return ffi.from_buffer("uint8_t[]", buffer)


_COUNTERS = tuple(name for name, _ in ffi.typeof("struct blk_counters").fields)


def _failure(event: CData) -> str:
    verb = ffi.string(event.operation).decode()
    if verb == "flush":
        return f"flush failed: {os.strerror(event.error)}"
    what = f"{verb} of {event.length} bytes at {event.offset:#x}"
    return f"{what} failed: {os.strerror(event.error)}" if event.error else f"{what}: the file has shrunk"
