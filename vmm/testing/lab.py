"""What the pytest plugin works with: a `Session` for the tests of a process, and a `Lab` of VMs for each of them."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from itertools import count
from typing import Any, Self

import pytest

from vmm.errors import VmmError
from vmm.mac import default_mac
from vmm.testing import process
from vmm.testing.config import Config
from vmm.testing.images import NoImage
from vmm.testing.store import Store
from vmm.testing.vm import BOOT_TIMEOUT_S, TIMEOUT_S, VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from vmm.testing.store import Prepare

KVM = "/dev/kvm"
#: Tells the main thread that a guest has died; nobody else uses it.
_ALARM = signal.SIGRTMAX - 5
_FIELDS = {field.name for field in fields(Config)}
_LINES = 100
_NAME_MAX = 40
_STATS_S = 5.0
#: Gives a guest's first card the address and name that its lan knows; then the card asks for the rest.
_JOIN = """\
ip link set eth0 down && ip link set eth0 address {mac} && ip link set eth0 up || exit
if command -v udhcpc; then exec udhcpc -n -q -f -i eth0; else exec dhclient -1 eth0; fi
"""

_numbers = count(1)


class Session:
    """*settings* are the plugin's, None where nothing is said. *required*: what is missing fails a test."""

    def __init__(self, settings: Mapping[str, Any], *, required: bool) -> None:
        given = {name: value for name, value in settings.items() if value}
        self.timeout = float(given.pop("timeout", TIMEOUT_S))
        self.logdir: str = given.pop("logdir", "")
        self.store = Store(boot_timeout=float(given.pop("boot-timeout", BOOT_TIMEOUT_S)))
        self.config = configured(Config(), {"disks" if name == "disk" else name: given[name] for name in given})
        self._required = required
        self.lab: Lab | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(_ALARM, self._on_alarm)

    def close(self) -> None:
        """End what the VMs needed; there are none any more."""
        process.close()
        if threading.current_thread() is threading.main_thread():
            signal.signal(_ALARM, self._before)  # a Session may be around this one: by default it ends the process

    def check_host(self) -> None:
        """Skip or fail the test where there is no KVM."""
        try:
            os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            self.missing(f"no VMs here: {KVM}: {error.strerror}; pyvmm doctor says more")

    def missing(self, reason: str) -> None:
        """Skip or fail the test for *reason*."""
        (pytest.fail if self._required else pytest.skip)(reason)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        __tracebackhide__ = True
        if self.lab is not None:
            self.lab.check()


class Lab:
    """The VMs of the test *item*, which end with it. *prepare* sees one before its snapshot is taken."""

    def __init__(self, session: Session, item: pytest.Item, prepare: Prepare | None) -> None:
        self._session, self._item, self._prepare = session, item, prepare
        self._vms: list[VM] = []
        self._ends = ExitStack()
        #: Of its lans, so that they are not another test's too.
        self._suffix = f"-{os.getpid()}-{next(_numbers)}"
        self.failed = False

    def __enter__(self) -> Self:
        self._session.check_host()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def vm(self, *, name: str = "", **settings: Any) -> VM:
        """A VM that goes on from the snapshot of what the test's markers and *settings* say, newly named by *name*."""
        config, timeout = self._configured(settings)
        watched, self._session.lab = self._session.lab, None  # else who dies now is what could not be built
        try:
            snapshot = self._session.store.snapshot(config, self._prepare)
        except NoImage as error:
            if config.image:
                raise
            self._session.missing(str(error))
        finally:
            self._session.lab = watched
        vm = snapshot.clone(
            f"{_plain(name or self._item.name)}{self._suffix}-{len(self._vms)}",
            nets=config.with_lans(self._suffix).nets,
            timeout=timeout,
        )
        vm.on_failure = self._on_failure
        self._ends.callback(vm.close)
        self._vms.append(vm)
        return vm.start()

    def net(self, *names: str, **settings: Any) -> list[VM]:
        """VMs on a network of their own, where they find each other by *names*."""
        lan = f"net{self._suffix}"
        vms = [self.vm(name=name, **settings, nets=[f"lan=net,name={name}"]) for name in names]
        for name, vm in zip(names, vms, strict=True):
            vm.run(_JOIN.format(mac=default_mac(f"lan {lan}/{name}").hex(":")))
        return vms

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise what kills a guest, at once if this is the main thread; else at the end."""
        if threading.current_thread() is threading.main_thread():
            self._session.lab = self
        try:
            yield
        finally:
            self._session.lab = None
        self.check()

    def check(self) -> None:
        """Raise what has become of a guest that has died or hangs, if nobody has been told yet."""
        __tracebackhide__ = True
        for vm in self._vms:
            failure = vm.failure()
            if failure is not None:
                raise failure

    def tell(self, report: pytest.TestReport, *, keep: bool) -> None:
        """Add what there is to know of the VMs to the *report* of a failing test, and to the log directory."""
        logged = bool(self._session.logdir) and (report.when == "call" or report.failed)
        for vm in self._vms if report.failed or logged else ():
            lines, stats = vm.console_lines(), _stats(vm) if vm.outcome == "running" else ""
            if report.failed:
                told = [f"{vm.outcome}; the last of {len(lines)} lines of its console:", *lines[-_LINES:]]
                if keep and vm.outcome == "running":
                    told.append(
                        f"It lives on: pyvmm console {vm.name}; pyvmm exec {vm.name} -- …; pyvmm kill {vm.name}"
                    )
                report.sections += [(f"VM {vm.name}", "\n".join(told)), (f"VM {vm.name}: statistics", stats)]
            if logged:
                directory = os.path.join(self._session.logdir, _plain(self._item.nodeid, 200))
                os.makedirs(directory, exist_ok=True)
                with open(os.path.join(directory, f"{vm.name}.log"), "w", encoding="utf-8") as file:
                    file.write("\n".join([*lines, "", vm.outcome, stats, ""]))

    def keep(self) -> None:
        """Let the VMs live on."""
        for vm in self._vms:
            if vm.outcome == "running":
                vm.keep()

    def _configured(self, settings: Mapping[str, Any]) -> tuple[Config, float]:
        config, timeout = self._session.config, self._session.timeout
        markers = [marker.kwargs for marker in self._item.iter_markers("vm")]
        for given in (*reversed(markers), settings):
            timeout = float(given.get("timeout", timeout))
            config = configured(config, {name: value for name, value in given.items() if name != "timeout"})
        return config, timeout

    def _on_failure(self, _vm: VM) -> None:
        """A guest has died, or hangs: from a thread of its VM."""
        if self._session.lab is self:
            signal.pthread_kill(threading.main_thread().ident or 0, _ALARM)


def configured(config: Config, settings: Mapping[str, Any]) -> Config:
    """*config* with *settings* instead; a kernel replaces an image, and an image a kernel."""
    unknown = settings.keys() - _FIELDS
    if unknown:
        raise pytest.UsageError(f"a VM has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(_FIELDS))}")
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        kind = type(getattr(config, name))
        many = kind is tuple
        changes[name] = tuple(map(os.fspath, value)) if many else kind(os.fspath(value) if kind is str else value)
    if "image" in changes:
        changes = {"kernel": "", "initrd": ""} | changes
    elif "kernel" in changes:
        changes["image"] = ""
    return replace(config, **changes)


def _stats(vm: VM) -> str:
    """What the guest made pyvmm do, as `pyvmm --stats` counts it; nothing if it does not tell."""
    try:
        stats = vm.request("stats", timeout=_STATS_S)
    except VmmError:
        return ""
    lines = []
    for what in ("exits", "devices"):
        lines += [what, *(f"  {number:>10}  {name}" for name, number in sorted(stats[what].items()))]
    lines += ["assists", *(f"  {told['count']:>10}  {name}" for name, told in sorted(stats["assists"].items()))]
    return "\n".join(lines)


def _plain(name: str, most: int = _NAME_MAX) -> str:
    """*name* with what may be in the name of a VM, or of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:most] or "test"
