"""The io thread's loop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from vmm.eventloop import EventLoop

PATIENCE_S = 10.0


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_a_readable_descriptor_is_called_for_as_long_as_it_is(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    got = bytearray()

    def on_readable() -> None:
        got.extend(os.read(reader, 1))
        if len(got) == 3:
            loop.stop()

    loop.watch(reader, on_readable)
    os.write(writer, b"abc")
    loop.run()
    assert got == b"abc"
    os.close(reader)
    os.close(writer)


def test_call_soon_runs_in_order_on_the_next_turn(loop: EventLoop) -> None:
    ran: list[int] = []

    def first() -> None:
        ran.append(1)
        loop.call_soon(lambda: ran.append(3))
        loop.call_soon(loop.stop)

    loop.call_soon(first)
    loop.call_soon(lambda: ran.append(2))
    loop.run()
    assert ran == [1, 2, 3]


def test_timers_run_in_the_order_of_their_times_and_not_before(loop: EventLoop) -> None:
    started = time.monotonic()
    ran: list[str] = []
    loop.call_later(0.03, loop.stop)
    loop.call_later(0.02, lambda: ran.append("late"))
    loop.call_later(0.0, lambda: ran.append("early"))
    loop.run()
    assert ran == ["early", "late"]
    assert time.monotonic() - started >= 0.03


def test_a_timer_may_be_further_away_than_epoll_waits(loop: EventLoop) -> None:
    loop.call_later(1e9, loop.stop)
    loop.call_soon(lambda: loop.call_later(0.0, loop.stop))
    loop.run()


def test_callbacks_hold_the_lock_they_came_with(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    lock = threading.Lock()
    held: list[bool] = []

    def on_readable() -> None:
        held.append(lock.locked())
        loop.unwatch(reader)
        loop.call_soon(lambda: held.append(lock.locked()), lock)
        loop.call_later(0.01, on_timer, lock)

    def on_timer() -> None:
        held.append(lock.locked())
        loop.stop()

    loop.watch(reader, on_readable, lock)
    os.write(writer, b"x")
    loop.run()
    assert held == [True, True, True]
    assert not lock.locked()
    os.close(reader)
    os.close(writer)


def test_a_descriptor_unwatched_in_the_same_round_is_not_called(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def on_readable(index: int) -> None:
        called.append(index)
        for reader, _ in pipes:
            loop.unwatch(reader)
        loop.call_soon(loop.stop)

    loop.watch(pipes[0][0], lambda: on_readable(0))
    loop.watch(pipes[1][0], lambda: on_readable(1))
    for _, writer in pipes:
        os.write(writer, b"x")
    loop.run()
    assert len(called) == 1
    for fds in pipes:
        os.close(fds[0])
        os.close(fds[1])


def test_what_is_always_ready_cannot_be_watched_and_leaves_no_trace(loop: EventLoop) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(PermissionError):
        loop.watch(fd, lambda: None)
    loop.unwatch(fd)
    os.close(fd)


def test_unwatching_a_stranger_does_nothing(loop: EventLoop) -> None:
    loop.unwatch(99)


def test_other_threads_wake_the_loop(loop: EventLoop) -> None:
    thread = threading.Thread(target=loop.run)
    thread.start()
    ran = threading.Event()
    loop.call_soon(ran.set)
    assert ran.wait(PATIENCE_S)
    ran.clear()
    loop.call_later(0.01, ran.set)
    assert ran.wait(PATIENCE_S)
    loop.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_an_exception_ends_the_run(loop: EventLoop) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    lock = threading.Lock()
    loop.call_soon(fail, lock)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert not lock.locked()
