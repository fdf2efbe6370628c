"""The event loop, one step at a time."""

from __future__ import annotations

import time

from vmm.eventloop import EventLoop


class SteppedLoop(EventLoop):
    """An `EventLoop` that a test drives in its own thread."""

    def watches(self, fd: int) -> bool:
        """Whether *fd* is watched."""
        return fd in self._watched

    def turn(self) -> bool:
        """Serve what is ready now; whether that was anything."""
        events = self._epoll.poll(0)
        for fd, _ in events:
            self._serve(fd)
        return bool(events)

    def settle(self, turns: int = 1000) -> None:
        """Serve until nothing is ready.

        Raises:
            AssertionError: the loop spins: something is ready after *turns* turns.
        """
        for _ in range(turns):
            if not self.turn():
                return
        raise AssertionError("the loop spins")

    def wait(self, seconds: float) -> None:
        """Serve what becomes ready, timers too, for *seconds*."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn()
            self._run_timers()
            time.sleep(0.001)
