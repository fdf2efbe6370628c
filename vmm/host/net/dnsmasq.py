"""DHCP and DNS for the guests of a network: Debian's dnsmasq, started again by a shell's loop if it dies.

Its files are beside the network's: `dnsmasq.conf`; `hosts/NAME` and `names/NAME`, the address of each guest with a name
for DHCP and for DNS, which dnsmasq reads when they appear (dnsmasq(8), --dhcp-hostsdir, --hostsdir); `leases`; and
`log`, why it did not start.
The processes are known by the configuration's path among their arguments, so none is lost, whenever a pyvmm that starts
or stops them is killed.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vmm.errors import BackendError
from vmm.host.net.link import user_name

if TYPE_CHECKING:
    from vmm.host.net.network import Nat
    from vmm.host.net.store import Store

#: dnsmasq ends with 0 when told to end, with less than 128 when it cannot start, else by a signal.
_LOOP = 'until dnsmasq --keep-in-foreground --conf-file="$0"; do [ $? -gt 128 ] || exit; sleep 1; done'
_PATIENCE_S = 10.0
_POLL_S = 0.002
_EXECVE_POLLS = 50
#: Who runs the loop, and whom dnsmasq becomes: others may give their processes any arguments.
_USERS = ("root", "nobody")


def _arguments(pid: int) -> list[str]:
    """The arguments of the process *pid*; none if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            for _ in range(_EXECVE_POLLS):
                if found := file.read():
                    return os.fsdecode(found).split("\0")
                os.readlink(f"/proc/{pid}/exe")  # fails for what never has arguments; others are amid execve
                time.sleep(_POLL_S)
                file.seek(0)
    except OSError:
        pass
    return []


def _user(pid: int) -> str:
    """Who runs the process *pid*; nothing if it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        return user_name(next(int(line.split()[1]) for line in lines if line.startswith("Uid:")))
    return ""


class Dnsmasq:
    """dnsmasq runs for *network*."""

    def __init__(self, store: Store, network: Nat) -> None:
        self._store, self._network = store, network
        self._path = store.path(network.name, "dnsmasq.conf")
        self.what = f"dnsmasq on {network.name}"

    def describe(self) -> str:
        return f"dnsmasq --conf-file={self._path}"

    def is_done(self) -> bool:
        return len(self.processes()) == 2 and self._written() == self._configuration()

    def do(self) -> None:
        if shutil.which("dnsmasq") is None:
            raise BackendError("there is no dnsmasq", fix="run: sudo apt install dnsmasq-base")
        self.stop()
        name = self._network.name
        for directory in ("hosts", "names"):
            os.makedirs(self._store.path(name, directory), mode=0o755, exist_ok=True)
        self._store.remove(name, "pid")
        self._store.write_text(self._configuration(), name, "dnsmasq.conf")
        with open(self._store.path(name, "log"), "w", encoding="utf-8") as log:
            # The pipe stays open as long as something of it runs.
            ended, alive = os.pipe()
            try:
                command = ["setsid", "--fork", "sh", "-c", _LOOP, self._path]
                subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[alive], check=True)
            finally:
                os.close(alive)
        try:
            self._await_start(ended)
        finally:
            os.close(ended)

    def undo(self) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, and the loop first; then what that has started meanwhile."""
        while found := self.processes():
            for pid, number in found:
                self._end(pid, number)

    def reread(self) -> None:
        """Let it forget the guests that have gone."""
        for pid, number in self.processes():
            if number == signal.SIGTERM:
                os.kill(pid, signal.SIGHUP)

    def processes(self) -> list[tuple[int, signal.Signals]]:
        """Its processes, with the signal that ends each; the loop comes first."""
        found = [(pid, self._role(pid)) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))]
        return sorted(((pid, number) for pid, number in found if number), key=lambda one: one[1] == signal.SIGTERM)

    def _role(self, pid: int) -> signal.Signals | None:
        """The signal that ends the process *pid*, if it is one of ours."""
        arguments = _arguments(pid)
        is_loop = _LOOP in arguments and self._path in arguments
        if not (is_loop or f"--conf-file={self._path}" in arguments) or _user(pid) not in _USERS:
            return None
        return signal.SIGKILL if is_loop else signal.SIGTERM

    def _end(self, pid: int, number: signal.Signals) -> None:
        """End the process *pid* by the signal *number*, unless it is another by now."""
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if self._role(pid) == number:
                signal.pidfd_send_signal(process, number)
                if not select.select([process], [], [], _PATIENCE_S)[0]:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(process)

    def _await_start(self, ended: int) -> None:
        """Until it has written its pid: it listens then."""
        deadline = time.monotonic() + _PATIENCE_S
        pid = self._store.path(self._network.name, "pid")
        while not os.path.exists(pid):
            gone = select.select([ended], [], [], _POLL_S)[0]
            if gone or time.monotonic() > deadline:
                with open(self._store.path(self._network.name, "log"), encoding="utf-8") as log:
                    said = log.read().strip() or "it does not start"
                raise BackendError(said.splitlines()[-1].removeprefix("dnsmasq: "))

    def _written(self) -> str:
        try:
            with open(self._path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def _configuration(self) -> str:
        network = self._network
        subnet = network.subnet
        lines = [
            f"interface={network.name}",
            "except-interface=lo",
            "bind-dynamic",
            "no-hosts",
            f"domain={network.name}",
            f"local=/{network.name}/",
            "domain-needed",
            "bogus-priv",
            "dhcp-authoritative",
            "no-ping",  # it waits for answers, and nobody else gives addresses here
            f"dhcp-range={subnet[2]},{subnet[network.middle - 1]},{subnet.netmask},1h",
            f"dhcp-hostsdir={self._store.path(network.name, 'hosts')}",
            f"hostsdir={self._store.path(network.name, 'names')}",  # one behind a NAT of its own takes no lease
            f"dhcp-leasefile={self._store.path(network.name, 'leases')}",
            f"pid-file={self._store.path(network.name, 'pid')}",
            "log-facility=/dev/null",  # what guests ask wrongly it logs even if quiet: they would fill the disk
        ]
        if network.subnet6:
            lines += ["enable-ra", f"dhcp-range={network.subnet6.network_address},ra-names,64,1h"]
        return "\n".join(lines) + "\n"
