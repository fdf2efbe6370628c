"""How a machine comes to a stand, and goes on."""

from __future__ import annotations

import threading

from vmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.eventloop import EventLoop
    from vmm.runner import VcpuRunner
    from vmm.virtio.transport.core import Transport

_HOLDER = "standstill"
#: The io thread's callbacks are short.
_PATIENCE_S = 5.0


class Standstill:
    """A machine in which nothing moves from `begin` to `end`: no vCPU, no worker, no callback of the io thread.

    No instruction is half done then, and no request. *running*: the machine has been started. Once; any thread but the
    machine's own.
    """

    def __init__(
        self, runners: Sequence[VcpuRunner], loop: EventLoop, transports: Sequence[Transport], *, running: bool
    ) -> None:
        self._runners, self._loop, self._transports, self._running = runners, loop, transports, running
        self._over = threading.Event()

    def begin(self) -> None:
        """Stop everything. Also where this fails, `end` makes it go on.

        Raises:
            HostError: the guest has ended.
        """
        for runner in self._runners:
            runner.hold(_HOLDER)
        for runner in self._runners:
            runner.call(lambda: None)
        # After the vCPUs, which may have asked the io thread for something, and before the devices, which it calls.
        if self._running:
            stands = threading.Event()

            def stand() -> None:
                stands.set()
                self._over.wait()

            self._loop.call_soon(stand)
            if not stands.wait(_PATIENCE_S):
                raise HostError("the io thread has ended")
        for transport in self._transports:
            with transport.lock:
                transport.core.stand()

    def end(self) -> None:
        """Let everything go on.

        Raises:
            HostError: a device cannot; all the rest does.
        """
        try:
            if self._running:
                for transport in self._transports:
                    with transport.lock:
                        transport.core.go_on()
        finally:
            self._over.set()
            for runner in self._runners:
                runner.release(_HOLDER)
