"""Block devices of either engine in a rig, with the patience that the native one takes: its workers are threads."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

from tests.fakes.driver import Buffer, Rig
from tests.fakes.loop import SteppedLoop
from vmm.virtio.blk import BlkDevice
from vmm.virtio.spec import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fakes.driver import DriverQueue
    from vmm.host.disk.overlay import OverlayDisk
    from vmm.host.disk.raw import RawDisk

PATIENCE_S = 10.0


def header(kind: int, sector: int = 0) -> bytes:
    """What a request begins with."""
    return struct.pack("<IIQ", kind, 0, sector)


class BlkRig(Rig):
    """The disk `vda` in a machine that has nothing else.

    *engine* is `python`, `native`, or `threads` for the native one without io_uring; *options* are `BlkDevice`'s.
    """

    def __init__(
        self, engine: str, disk: RawDisk | OverlayDisk, *, memory_bytes: int = 4 << 20, **options: Any
    ) -> None:
        self.loop = SteppedLoop()
        self.blk = make_blk(engine, disk, self.loop, **options)
        super().__init__(self.blk, memory_bytes=memory_bytes, tracing=True)

    def close(self) -> None:
        super().close()
        self.loop.close()

    def serve(self) -> None:
        """What the io thread does now."""
        if not self.device.own_workers:
            self.run_kicks()
        self.loop.settle()
        self.loop._run_timers()

    def collect(self, count: int = 1, queue: DriverQueue | None = None) -> list[tuple[int, int]]:
        """The next *count* used buffers; fewer if the device needs a reset.

        Raises:
            TimeoutError: neither comes.
        """
        queue = queue or self.driver.queues[0]
        deadline = time.monotonic() + PATIENCE_S
        used = queue.collect()
        while len(used) < count and not self.driver.status & Status.DEVICE_NEEDS_RESET:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(used)} used buffers, not {count}")
            time.sleep(0)
            self.serve()
            used += queue.collect()
        self.serve()
        return used

    def submit(self, buffers: Sequence[Buffer], *, indirect: bool = False, index: int = 0) -> int:
        """Send one request; the written length."""
        queue = self.driver.queues[index]
        head = queue.add(buffers, indirect=indirect)
        self.driver.kick(index)
        ((used, written),) = self.collect(queue=queue)
        assert used == head
        return written

    def request(
        self, kind: int, sector: int = 0, *, data: bytes = b"", room: int = 0, index: int = 0
    ) -> tuple[int, bytes, int]:
        """One request in the usual framing; its status, the data read, and the written length."""
        target, status = self.arena.writable(max(room, 1)), self.arena.writable(1)
        buffers = [self.arena.readable(header(kind, sector))]
        if data:
            buffers.append(self.arena.readable(data))
        if room:
            buffers.append(target)
        written = self.submit([*buffers, status], index=index)
        return self.arena.content(status)[0], self.arena.content(target) if room else b"", written

    def counted(self) -> dict[str, int]:
        """What was counted so far; the device is reset for that."""
        self.driver.reset()
        return {name.removeprefix("vda."): count for name, count in self.tally.counts.items()}


def make_blk(engine: str, disk: RawDisk | OverlayDisk, loop: SteppedLoop, **options: Any) -> BlkDevice:
    """The device `vda` of *engine*."""
    if engine == "python":
        return BlkDevice("vda", disk, loop, **options)
    from vmm.virtio.blk_native import NativeBlkDevice

    return NativeBlkDevice("vda", disk, loop, io_uring=engine == "native", **options)
