"""What a run of pyvmm has beyond one machine: its back ends, its statistics, and the wish to stop."""

from __future__ import annotations

import math
import os
import select
import threading

from vmm.backends import Backends
from vmm.errors import HostError
from vmm.trace import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from vmm.config import MachineConfig
    from vmm.kvm.assist.probe import HostKind
    from vmm.snapshot.file import Snapshot
    from vmm.trace import Trace

    class Present(Protocol):
        """The machine, as who controls it from outside sees it. `stop` and `paused` need no lock: see `Machine`."""

        @property
        def paused(self) -> bool:
            """Whether the guest stands still."""

        def pause(self, *, wait: bool = False) -> None:
            """Stop the processors until `resume`; *wait* until they have stopped."""

        def resume(self) -> None:
            """Let the processors go on."""

        def stop(self, by: str) -> None:
            """End the machine."""

        def type(self, data: bytes) -> bool:
            """Type *data* at the console; False: not now, none of it was taken."""

        def press_ctrl_alt_del(self) -> None:
            """Ask the guest to shut down."""

        def begin_snapshot(self, path: str, parent: str = "", *, overlays: bool = False) -> Snapshotting:
            """Write all of the machine to the file *path*; of its memory what is not as in the snapshot *parent*.

            With *overlays* what is on these is kept too.
            """

        def count_exits(self) -> dict[str, int]:
            """How often the guest came out, by what for."""

        def count_kvm(self) -> dict[str, int]:
            """What KVM has counted."""

    class Snapshotting(Protocol):
        """A snapshot on its way, which needs the machine no more: `vmm.snapshot.writing.Writing`."""

        def finish(self) -> None:
            """Write it to its end."""

        def close(self) -> None:
            """Let go of it, finished or not."""


_BUILD = "install a C compiler, python3-dev and liburing-dev, then pyvmm again: pip install --force-reinstall pyvmm"


class Session:
    """What outlives a reboot: the configuration, the back ends, what the host can do, and the statistics."""

    def __init__(
        self,
        config: MachineConfig,
        host: HostKind,
        *,
        say: Callable[[str], None],
        trace: Trace,
        cache_dir: str | None,
        directory: str = "",
        snapshot: Snapshot | None = None,
    ) -> None:
        self.config, self.host, self.say, self.cache_dir = config, host, say, cache_dir
        #: The VM's own, as in `vmm.api.place`; empty where it has none.
        self.directory = directory
        #: What the first machine goes on from, instead of booting.
        self.snapshot = snapshot
        self.exits: dict[str, int] = {}
        self.devices, self.assists = Tally(), Tally()
        self._trace = trace
        #: Whether plain registers, disks and network cards are served in C.
        self.native = _native(config, say)
        self.backends = Backends(config, say, directory)
        self._alarm, self.wake_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        #: What a Linux is told on software KVM.
        self.assist_options: tuple[str, ...] = ()
        if not host.complete:
            from vmm.kvm.assist.linux import OPTIONS

            self.assist_options = OPTIONS
        #: The present machine, None between two; *presence* keeps it: whoever uses more of it than `stop` holds that.
        self.machine: Present | None = None
        self.presence = threading.Lock()
        #: Told what happens, by name, with details; from any thread, or a signal handler.
        self.on_event: Callable[[str, dict[str, object]], None] = lambda _event, _details: None
        #: Who has asked the guest to shut down: its next reset is the end.
        self.shut_down_by = ""
        self._resize_console: Callable[[], None] = lambda: None
        self._stopped_by = ""

    def trace(self, kind: str) -> Trace | None:
        """The sink for *kind*, None if it is not traced."""
        return self._trace if kind in self.config.trace else None

    def enter(self, machine: Present) -> None:
        """*machine* is the present one from now on; it is stopped at once if `stop` has come before."""
        self.machine = machine
        if self._stopped_by:
            machine.stop(self._stopped_by)

    def leave(self) -> None:
        """The present machine is about to be closed: wait until nobody else uses it."""
        with self.presence:
            self.machine = None

    def tell(self, event: str, **details: object) -> None:
        """Let who watches the VM know of *event*; any thread, or a signal handler."""
        self.on_event(event, details)

    def resume(self) -> None:
        """Let the present machine go on if it is paused; the main thread's, or a signal handler's."""
        if self.machine is not None:
            self.machine.resume()

    def on_resize(self, resize_console: Callable[[], None]) -> None:
        """Let `resized` call *resize_console*, that of the present machine."""
        self._resize_console = resize_console

    def resized(self) -> None:
        """The terminal has another size; any thread, or a signal handler."""
        self._resize_console()

    def stop(self, by: str) -> None:
        """End the present machine, or the next; any thread, or a signal handler."""
        self._stopped_by = by
        machine = self.machine
        if machine is not None:
            machine.stop(by)

    def wake(self) -> None:
        """Make `sleep` return; any thread, or a signal handler.

        To be woken by every signal, whichever thread it reaches, give `wake_fd` to `signal.set_wakeup_fd`: Python runs
        handlers in the main thread only, and a signal that a vCPU thread takes does not get it out of a lock.
        """
        try:  # noqa: SIM105  contextlib costs start-up time
            os.write(self.wake_fd, b"\0")
        except BlockingIOError:
            pass  # so many alarms are pending already

    def sleep(self, timeout_s: float | None) -> bool:
        """Wait for `wake`, at most *timeout_s*; whether it came. The main thread's."""
        poll = select.poll()
        poll.register(self._alarm, select.POLLIN)
        if not poll.poll(None if timeout_s is None else max(0, math.ceil(1000 * timeout_s))):
            return False
        os.read(self._alarm, 4096)
        return True

    def close(self) -> None:
        """Close the back ends."""
        self.backends.close()
        os.close(self._alarm)
        os.close(self.wake_fd)


def _native(config: MachineConfig, say: Callable[[str], None]) -> bool:
    """Whether the native engine serves the devices of *config*.

    Raises:
        HostError: it was asked for, and is not built.
    """
    if config.engine == "python":
        return False
    if config.engine is None and "virtio" in config.trace and (config.disks or config.nets):
        say("the python engine serves the disks and network cards: the native one does not trace requests")
        return False
    from vmm.native import is_built

    if is_built():
        return True
    if config.engine == "native":
        raise HostError("it is not built", where="--engine native", fix=_BUILD)
    say("the native engine is not built: the python engine serves the disks and network cards")
    return False
