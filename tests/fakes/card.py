"""A network card in front of a tap that is a socket, by either engine."""

from __future__ import annotations

import os
import select
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.fakes.driver import Buffer, Rig
from tests.fakes.loop import SteppedLoop
from tests.fakes.tap import SocketTap
from vmm.config import NetLimits
from vmm.virtio.net import NetDevice
from vmm.virtio.net_python import PythonPath

if TYPE_CHECKING:
    from vmm.host.tap import Tap
    from vmm.host.uplink import Uplink
    from vmm.virtio.net import Path

MAC = bytes.fromhex("525400123456")
MTU = 1500
RX, TX = 0, 1
#: Within which workers come to rest, on a host that is busy.
_REST_S = 20
#: Its number, as the kernel writes it.
_EPOLL_WAIT = "232"


class Card(Rig):
    """A card with *pairs* queue pairs, driven in the test's own thread but for what its workers do.

    It is on `tap`, or on a real *tap* or uplink, which is closed with it.
    """

    def __init__(
        self,
        engine: str,
        *,
        pairs: int = 1,
        tracing: bool = False,
        limits: NetLimits | None = None,
        tap: Tap | Uplink | None = None,
    ) -> None:
        self.loop, self.tap = SteppedLoop(), SocketTap(pairs)
        self._real_tap = tap
        used = tap or self.tap
        self.path: Path
        if engine == "native":
            from vmm.virtio.net_native import NativePath

            self.path = NativePath(used, self.loop)
        else:
            self.path = PythonPath(used, self.loop)
        if limits is not None:
            self.path.set_limits(limits)
        self.card = NetDevice("net0", used, self.loop, self.path, mac=MAC, mtu=tap.mtu if tap else MTU)
        super().__init__(self.card, tracing=tracing)

    def offer(self, *sizes: int, index: int = RX) -> Buffer:
        """Give the device a receive buffer, cut into *sizes*, without a kick; its first piece."""
        pieces = [self.arena.writable(size) for size in sizes]
        self.driver.queues[index].add(pieces)
        return pieces[0]

    def send(self, *pieces: bytes, index: int = TX) -> None:
        """Have the driver send one frame, in *pieces*."""
        self.driver.queues[index].add([self.arena.readable(piece) for piece in pieces])
        self.kick(index)

    def kick(self, index: int) -> None:
        """Kick queue *index*, and let happen what follows."""
        self.driver.kick(index)
        self.settle()

    def arrive(self, *frames: bytes, queue: int = 0) -> None:
        """Let *frames*, with their headers, come in from outside."""
        for frame in frames:
            self.tap.queues[queue].outside.send(frame)
        self.settle()

    def command(self, *pieces: bytes, room: int = 1) -> bytes:
        """Have the driver give a command, in *pieces*; the answer."""
        index = len(self.driver.queues) - 1
        answer = self.arena.writable(room)
        self.driver.queues[index].add([*(self.arena.readable(piece) for piece in pieces), answer])
        self.kick(index)
        return self.arena.content(answer)

    def used(self, index: int) -> list[int]:
        """The written lengths of what came back."""
        return [written for _, written in self.driver.queues[index].collect()]

    def settle(self) -> None:
        """Until nobody has anything to do.

        Raises:
            AssertionError: a worker never comes to rest; it says which, and where it is.
        """
        self.loop.settle()
        if self.path.own_workers:
            deadline = time.monotonic() + _REST_S
            # One that has been woken, and waits for a CPU, may look asleep as before: but then there is the event.
            while busy := _busy_workers() or _unread_events() or _busy_workers():
                assert time.monotonic() < deadline, busy
                time.sleep(0.0002)
                self.loop.settle()
            if self.loop.turn():
                self.settle()

    def counts(self) -> dict[str, int]:
        """The counters; those of native workers are told at the device's reset."""
        if self.path.own_workers:
            self.driver.reset()
        return self.tally.counts

    def close(self) -> None:
        super().close()
        self.tap.close()
        if self._real_tap is not None:
            self._real_tap.close()
        self.loop.close()


def _busy_workers() -> list[str]:
    """What is known of each worker thread of this process that is not asleep in epoll_wait, whichever card it is of.

    `syscall` tells of a sleep only when the thread has left its CPU: the state in `stat` is said to be a sleep before
    the last look for events.
    """
    busy = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="ascii") as file:
                name = file.read().strip()
            with open(f"/proc/self/task/{task}/syscall", encoding="ascii") as file:
                call = file.read().strip()
        except (FileNotFoundError, ProcessLookupError):  # the list ends with one that ends while it is made
            busy.append(f"thread {task} has just ended")
            continue
        if name == "net" and call.split()[0] != _EPOLL_WAIT:
            busy.append(f"thread {task}, system call {call}")
    return busy


def _unread_events() -> list[str]:
    """The epoll descriptors of this process with events that nobody has fetched."""
    poll = select.poll()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]":
                poll.register(int(fd), select.POLLIN)
    return [f"epoll {fd}" for fd, _ in poll.poll(0)]


def header(*, flags: int = 0, gso: int = 0, buffers: int = 0) -> bytes:
    """A `struct virtio_net_hdr`."""
    return struct.pack("<BBHHHHH", flags, gso, 0, 0, 0, 0, buffers)


def frame(size: int = 60, to: bytes = MAC) -> bytes:
    """A frame of *size* bytes for *to*, with random contents; without its header."""
    return to + os.urandom(size - 6)
