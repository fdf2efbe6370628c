"""Looking for a guest that halted for good, and looking no more at one that idles."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import cast

import pytest

from vmm.eventloop import EventLoop
from vmm.halt import HaltWatch
from vmm.kvm import abi
from vmm.runner import VcpuRunner

#: How long after its last exit a guest is looked at, at most; and as good as for ever.
LOOKED_AT_S, HOUR_S = 30, 3600


class FakeLoop:
    """The loop's timers, on a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self._timers, self._order = 0.0, list[tuple[float, int, Callable[[], None]]](), itertools.count()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._order), callback))

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.call_later(0, callback)

    def wait(self, seconds: float) -> int:
        """Let *seconds* go by; how often the loop was woken in them."""
        end, woken = self.now + seconds, 0
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback = heapq.heappop(self._timers)
            callback()
            woken += 1
        self.now = end
        return woken


class FakeRunner:
    """A vCPU thread that does its errands at once, and its vCPU, in *state*."""

    def __init__(self) -> None:
        self.state = abi.KVM_MP_STATE_RUNNABLE
        self.looks = 0
        self.vcpu = self
        self.on_exit: Callable[[], None] | None = None

    def in_thread(self, errand: Callable[[], object]) -> None:
        errand()

    def get_mp_state(self) -> int:
        self.looks += 1
        return self.state

    def call_at_exit(self, callback: Callable[[], None]) -> None:
        self.on_exit = callback


class Guest:
    """A guest of two vCPUs, watched."""

    def __init__(self) -> None:
        self.loop, self.runners = FakeLoop(), [FakeRunner(), FakeRunner()]
        self.exits: Callable[[], int] = lambda: 0
        self.ended = False
        runners, loop = cast("list[VcpuRunner]", self.runners), cast("EventLoop", self.loop)
        HaltWatch(loop, runners, lambda: self.exits(), self._end)

    def _end(self) -> None:
        self.ended = True

    def halt(self) -> None:
        for runner in self.runners:
            runner.state = abi.KVM_MP_STATE_UNINITIALIZED

    def exit(self, cpu: int) -> None:
        """The first exit of *cpu* after a rest."""
        on_exit = self.runners[cpu].on_exit
        assert on_exit
        on_exit()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_guest_that_halted_for_good_is_noticed_soon(guest: Guest) -> None:
    guest.halt()
    guest.loop.wait(3)
    assert guest.ended


def test_one_cpu_that_runs_is_enough(guest: Guest) -> None:
    guest.halt()
    guest.runners[1].state = abi.KVM_MP_STATE_RUNNABLE
    guest.loop.wait(HOUR_S)
    assert not guest.ended


def test_a_guest_that_makes_exits_is_not_looked_at(guest: Guest) -> None:
    guest.exits = itertools.count().__next__
    guest.loop.wait(HOUR_S)
    assert guest.runners[0].looks == 0


def test_an_idle_guest_is_looked_at_a_few_times_and_then_wakes_nobody(guest: Guest) -> None:
    guest.loop.wait(LOOKED_AT_S)
    assert 3 <= guest.runners[0].looks <= 6
    assert guest.loop.wait(HOUR_S) == 0


@pytest.mark.parametrize("cpu", [0, 1])
def test_after_the_next_exit_of_any_cpu_it_is_looked_at_again(guest: Guest, cpu: int) -> None:
    guest.loop.wait(HOUR_S)
    guest.halt()
    guest.exit(cpu)
    guest.loop.wait(3)
    assert guest.ended


def test_the_next_exits_of_several_cpus_are_one_reason(guest: Guest) -> None:
    guest.loop.wait(HOUR_S)
    guest.exit(0)
    once = guest.loop.wait(HOUR_S)
    guest.exit(0)
    guest.exit(1)
    assert guest.loop.wait(HOUR_S) == once + 1


def test_an_exit_while_it_goes_to_rest_is_not_missed(guest: Guest) -> None:
    guest.exits = lambda: int(guest.runners[0].on_exit is not None)  # one more as the first vCPU is told to tell of it
    guest.loop.wait(LOOKED_AT_S)
    before = guest.runners[0].looks
    guest.loop.wait(LOOKED_AT_S)
    assert guest.runners[0].looks > before
