"""A VM under test: a process of its own, gone at the latest when this one is."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from vmm.agent.client import Agent, AgentError
from vmm.api import place
from vmm.api.client import Client, NoAnswer, NoSuchVm
from vmm.api.warm import Ended, Spawned
from vmm.errors import HostError, VmmError
from vmm.host.vsock import VSOCK
from vmm.testing import process
from vmm.testing.config import Config
from vmm.testing.console import Console, Log
from vmm.testing.errors import AgentLost, GuestCrash, GuestEnded, GuestHang, GuestPanic, StartFailed, VMError
from vmm.testing.guest import Guest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.testing.snapshot import Snapshot

#: How long what blocks may take by default, in seconds; and a boot until the agent answers.
TIMEOUT_S, BOOT_TIMEOUT_S = 60.0, 300.0
_PANIC, _CRASH, _STOPPED = 120, 121, 123
#: A guest that is asked something gets a greeting now and then; one that does not answer it in this time hangs.
_BEAT_S, _HANG_S = 30.0, 20.0
#: Between the end of the agent's connection and that of the VM; and for one that is to end.
_ENDING_S, _END_S = 5.0, 15.0
_CONSOLE_LINES = 200
_PANIC_LINE = "Kernel panic - not syncing: "
_ASSISTING = "this host's KVM is software"

_numbers = itertools.count(1)


class VM(Guest):
    """A virtual machine, running from the beginning of a `with` to its end; or from `start` to `close`.

    *kernel*, or the kernel and root disk of *image* (`micro`, which is the default, `debian`, or a directory with such
    an image). *disks*: images as `--disk` takes them, which are not written to (what the guest writes is thrown away
    at the end), or sizes such as `64M`, for empty ones. *nets*: as `--net` takes them, such as `lan=lab`. *options* are
    more of `pyvmm run`. The guest needs pyvmm's agent (docs/agent.md).

    Whatever waits does so up to its own `timeout` in seconds, else *timeout*; the boot, up to *boot_timeout*. One
    thread's at a time.

    Raises:
        StartFailed: it cannot run, or its guest did not come up.
        GuestEnded, GuestHang, AgentLost: whatever is asked of it, as `vmm.testing.errors` says.
    """

    def __init__(
        self,
        kernel: str | os.PathLike[str] = "",
        *,
        image: str = "",
        initrd: str | os.PathLike[str] = "",
        append: str = "",
        disks: Sequence[str | os.PathLike[str]] = (),
        nets: Sequence[str] = (),
        cpus: int = 1,
        memory: str = "256M",
        transport: str = "mmio",
        options: Sequence[str] = (),
        name: str = "",
        timeout: float = TIMEOUT_S,
        boot_timeout: float = BOOT_TIMEOUT_S,
    ) -> None:
        config = Config(
            kernel=os.fspath(kernel),
            image=image,
            initrd=os.fspath(initrd),
            append=append,
            disks=tuple(os.fspath(disk) for disk in disks),
            nets=tuple(nets),
            cpus=cpus,
            memory=memory,
            transport=transport,
            options=tuple(options),
        )
        self._prepare(config, None, name, timeout, boot_timeout)

    @classmethod
    def of(
        cls,
        config: Config,
        snapshot: Snapshot | None = None,
        *,
        name: str = "",
        timeout: float = TIMEOUT_S,
        boot_timeout: float = BOOT_TIMEOUT_S,
    ) -> Self:
        """The VM that *config* says; one that goes on from *snapshot*, if there is one."""
        vm = cls.__new__(cls)
        vm._prepare(config, snapshot, name, timeout, boot_timeout)
        return vm

    def _prepare(
        self, config: Config, snapshot: Snapshot | None, name: str, timeout: float, boot_timeout: float
    ) -> None:
        self.config, self._snapshot = config, snapshot
        self.name = name or f"test-{os.getpid()}-{next(_numbers)}"
        self.timeout, self._boot_timeout = timeout, boot_timeout
        self.directory = place.directory(self.name)
        self.agent = Agent(os.path.join(self.directory, VSOCK), patience_s=timeout)
        #: Called when there is a `failure`; in a thread of its own.
        self.on_failure: Callable[[VM], None] = lambda _vm: None
        self._process: Spawned | None = None
        self._watch = threading.Thread(target=self._wait_for_end, name=f"VM {self.name}", daemon=True)
        self._over = threading.Event()
        self._ended: Ended | None = None
        #: Whether it may end: asked to, or expected.
        self._may_end = False
        self._hangs = self._paused = False
        self._kept = False
        self._console: Console | None = None
        self._last_lines: list[str] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VM {self.name}: {self.outcome.splitlines()[0]}>"

    def start(self) -> Self:
        """Boot it, or let it go on from its snapshot, until the agent answers."""
        try:
            self._begin()
        except VmmError as error:
            raise StartFailed(str(error), name=self.name) from error
        try:
            if self._snapshot is None:
                limit = self._boot_timeout
                Agent(os.path.join(self.directory, VSOCK), patience_s=limit).hello(timeout_s=limit)
            else:
                self.agent.renew(self.timeout)
        except BaseException as error:
            failure = self._failure(error) if isinstance(error, AgentError) else None
            self.close()
            if failure is None:
                raise
            raise StartFailed(failure.what, name=self.name, console=failure.console) from error
        return self

    def _begin(self) -> None:
        warm = process.warm()
        if self._snapshot is None:
            self.config = self.config.resolved()
            fixed = ("--name", self.name, "--vsock", "auto", "--serial", "quiet")
            self._process = warm.boot([*fixed, *self.config.arguments()], wait_s=self.timeout)
        else:
            nets = self.config.nets or None
            self._process = warm.spawn(self._snapshot.path, name=self.name, nets=nets, clone=True, wait_s=self.timeout)
        self.pid = self._process.pid
        try:
            self._log = Log(os.path.join(self.directory, place.LOG))
        except OSError as error:
            said = self._process.wait(self.timeout).said
            self._process.close()
            self._process = None
            raise HostError(f"has ended at once: {said}") from error
        self._watch.start()

    def close(self) -> None:
        """End it, unless it is to be kept, and let go of it."""
        if self._process is None:
            return
        self.agent.close()
        if not self._kept:
            self.kill()
            self._watch.join()
            self._process.close()  # of one that is kept, the thread waits on
        self._last_lines = self._log.tail(_CONSOLE_LINES)
        self._process = None
        self._log.close()
        if self._console is not None:
            self._console.close()

    def keep(self) -> None:
        """Let it run on when it is closed, and when this process ends."""
        assert self._process is not None
        self._process.keep()
        self._kept = self._may_end = True

    # -- control -----------------------------------------------------------------------------------------------------

    def request(self, do: str, *, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Ask its control socket for *do* with *arguments*, as in docs/control.md."""
        wait_s = self.timeout if timeout is None else timeout
        try:
            with Client(self.name, timeout_s=wait_s) as client:
                return client.request(do, wait_s=wait_s, **arguments)
        except (NoAnswer, NoSuchVm) as error:
            raise self._failure(error) from error

    def pause(self) -> None:
        """Stop its processors: they are out of the guest afterwards."""
        self._paused = True
        self.request("pause")

    def resume(self) -> None:
        """Let them go on."""
        self.request("resume")
        self._paused = False

    def stop(self, timeout: float = 20.0) -> Ended:
        """Ask the guest to shut down, and end the VM when it has or after *timeout*."""
        self._may_end = True
        self.request("stop", timeout=timeout + _END_S, timeout_s=timeout)
        return self.wait(_END_S)

    def kill(self) -> Ended:
        """End it at once; the guest is not asked."""
        self._may_end = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process is None or self._over.is_set():
                break
            self._process.signal(number)
            self._over.wait(_END_S)
        return self.wait(_END_S)

    def wait(self, timeout: float | None = None) -> Ended:
        """Wait until it has ended: pyvmm's exit code, and what it said."""
        self._may_end = True
        limit = self.timeout if timeout is None else timeout
        if not self._over.wait(limit):
            raise GuestHang(f"has not ended after {limit:g} seconds", name=self.name, console=self.console_lines())
        assert self._ended is not None
        return self._ended

    def snapshot(self) -> Snapshot:
        """All of it as it is now, to be cloned; it goes on afterwards."""
        from vmm.testing.snapshot import Snapshot

        return Snapshot.of(self)

    # -- what it tells -----------------------------------------------------------------------------------------------

    @property
    def console(self) -> Console:
        """Its console, as a pexpect object."""
        if self._console is None:
            self._console = Console(self._log.again(), self._type, self._over.is_set, self.ended_error, self.timeout)
        return self._console

    def console_lines(self, count: int = _CONSOLE_LINES) -> list[str]:
        """The last lines that its guest has printed."""
        return self._last_lines[-count:] if self._process is None else self._log.tail(count)

    @property
    def outcome(self) -> str:
        """Whether it runs, and else how it ended."""
        if self._process is None and self._ended is None:
            return "not running"
        return "running" if self._ended is None else self._end().what

    def failure(self) -> VMError | None:
        """What has gone wrong with it, once: it has ended by itself and not well, or does not answer any more."""
        if self._ended is not None and not self._may_end and self._ended.code not in (0, _STOPPED):
            return self.ended_error()
        if self._hangs:
            self._hangs = False
            return GuestHang("its agent does not answer any more", name=self.name, console=self.console_lines())
        return None

    def ended_error(self) -> GuestEnded:
        """How it has ended, to be raised: it is no `failure` any more."""
        self._may_end = True
        return self._end()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _end(self) -> GuestEnded:
        ended = self._ended
        assert ended is not None
        kind = {_PANIC: GuestPanic, _CRASH: GuestCrash}.get(ended.code, GuestEnded)
        console = self.console_lines()
        lines = [line.removeprefix("pyvmm: ") for line in ended.said.splitlines() if _ASSISTING not in line]
        what = "\n".join(lines) or ("the guest powered off" if ended.code == 0 else "the VM was stopped")
        if kind is GuestPanic:  # its own words say more than how they were noticed
            what = next((line[line.index(_PANIC_LINE) :] for line in console if _PANIC_LINE in line), what)
        return kind(what, code=ended.code, name=self.name, console=console)

    def _failure(self, error: Exception) -> VMError:
        """What has become of it, of which *error* is a sign."""
        hangs = isinstance(error, TimeoutError)
        if self._over.wait(0 if hangs else _ENDING_S):
            return self.ended_error()
        kind = GuestHang if hangs or isinstance(error, NoAnswer) else AgentLost
        return kind(str(error), name=self.name, console=self.console_lines())

    def _answers(self) -> bool:
        try:
            self.agent.hello(timeout_s=_HANG_S)
        except AgentError:
            return False
        return True

    def _type(self, text: str, timeout: float) -> None:
        self.request("type", text=text, timeout=timeout + 1, timeout_s=timeout)

    def _wait_for_end(self) -> None:
        spawned, before = self._process, 0  # `close` lets go of one that is kept, while it runs on
        assert spawned is not None
        while self._ended is None:
            try:
                self._ended = spawned.wait(_BEAT_S)
                self._over.set()
            except NoAnswer:
                pending, before = self.is_asked and before == self.questions, self.questions
                silent = pending and not self._paused and not self._answers()
                self._hangs = silent and self.is_asked and before == self.questions and not _ends(spawned)
            if self._hangs or not (self._may_end or self._ended is None):
                self.on_failure(self)


def _ends(spawned: Spawned) -> bool:
    """Whether it has just ended, which is more than to hang."""
    try:
        spawned.wait(_ENDING_S)
    except NoAnswer:
        return False
    return True
