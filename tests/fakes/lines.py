"""What a device is wired to, in memory: an interrupt line, an output, a clock with its timers."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from vmm.regs import POSTED_MAX, PostedRegister


class CountingIrq:
    """An interrupt line that counts its pulses."""

    def __init__(self) -> None:
        self.pulses = 0
        self.fd = -1

    def pulse(self) -> None:
        self.pulses += 1

    def taken(self) -> int:
        """How many pulses came since the last call."""
        pulses, self.pulses = self.pulses, 0
        return pulses


class Sink:
    """A byte sink that takes everything until it is told to be full."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.full = False

    def write(self, data: bytes) -> bool:
        if self.full:
            return False
        self.taken += data
        return True


def post(register: PostedRegister, data: bytes) -> int:
    """Collect the guest's writes of *data*, as the vCPU's thread does; how many there is room for."""
    put, taken = struct.unpack_from("QQ", register.ring)
    data = data[: POSTED_MAX - (put - taken)]
    for index, byte in enumerate(data):
        register.ring[16 + (put + index) % POSTED_MAX] = byte
    struct.pack_into("Q", register.ring, 0, put + len(data))
    return len(data)


class Clock:
    """A wall clock that stands still until it is put forward, and runs the timers then."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self.timers: list[tuple[float, Callable[[], None], threading.Lock]] = []

    def __call__(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None], lock: threading.Lock) -> None:
        self.timers.append((self.now_s + delay_s, callback, lock))

    def advance(self, seconds: float) -> None:
        """Put the clock forward, running each timer at its time."""
        end_s = self.now_s + seconds
        while due := [timer for timer in self.timers if timer[0] <= end_s]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer[0])
            with timer[2]:
                timer[1]()
        self.now_s = end_s
