"""The io thread: one epoll loop for the devices that Python serves, for stdin, and for timers."""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count

Callback = Callable[[], None]
#: epoll_wait(2) waits for no more than 2^31 ms.
_WAIT_MAX_S = 2e6


class EventLoop:
    """Runs callbacks in the thread that calls `run`, each under the lock it was registered with.

    Callbacks are short and never block. `watch`, `unwatch`, `call_soon` and `call_later` may be called from any
    thread. A callback's exception ends `run`: whoever runs the loop decides what it means.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, tuple[Callback, threading.Lock | None]] = {}
        self._soon: deque[tuple[Callback, threading.Lock | None]] = deque()
        self._timers: list[tuple[float, int, Callback, threading.Lock | None]] = []
        self._timer_lock = threading.Lock()
        self._order = count()
        self._stopping = False

    def watch(self, fd: int, callback: Callback, lock: threading.Lock | None = None) -> None:
        """Call *callback* (holding *lock*) whenever *fd* is readable; level-triggered.

        Raises:
            PermissionError: *fd* cannot be waited for, being always ready (a regular file, `/dev/null`).
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = (callback, lock)

    def unwatch(self, fd: int) -> None:
        """Stop watching *fd*; nothing happens if it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, callback: Callback, lock: threading.Lock | None = None) -> None:
        """Run *callback* (holding *lock*) on the loop's next turn."""
        self._soon.append((callback, lock))
        os.eventfd_write(self._wake, 1)

    def call_later(self, delay_s: float, callback: Callback, lock: threading.Lock | None = None) -> None:
        """Run *callback* (holding *lock*) once, *delay_s* seconds from now."""
        with self._timer_lock:
            heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), callback, lock))
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Make `run` return after its turn."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            for fd, _ in self._epoll.poll(self._timeout_s()):
                self._serve(fd)
            self._run_timers()

    def close(self) -> None:
        """Free the loop's own descriptors; the watched ones are their owners'."""
        self._epoll.close()
        os.close(self._wake)

    def _serve(self, fd: int) -> None:
        if fd == self._wake:
            os.eventfd_read(fd)
            for _ in range(len(self._soon)):
                _call(*self._soon.popleft())
            return
        # An earlier callback of this round may have unwatched the fd: then its event is stale.
        watched = self._watched.get(fd)
        if watched is not None:
            _call(*watched)

    def _timeout_s(self) -> float | None:
        with self._timer_lock:
            if not self._timers:
                return None
            return min(max(0.0, self._timers[0][0] - time.monotonic()), _WAIT_MAX_S)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while True:
            with self._timer_lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                _, _, callback, lock = heapq.heappop(self._timers)
            _call(callback, lock)


def _call(callback: Callback, lock: threading.Lock | None) -> None:
    if lock is None:
        callback()
    else:
        with lock:
            callback()
