"""What can be asked of a running VM: one function a request, named in one of two tables at the end.

A function takes the `Server` and the request's other members, and gives what is answered as `ok`. What its arguments
make impossible is a `ConfigError`, what the host does a `HostError`. Those `AT_ONCE` are run in the api thread and take
no time and no lock; those `WAITING` in a thread of their own, where `present` gives them the machine for as long as
they need it: it is not closed, and nobody else uses it, meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vmm import __version__
from vmm.api.place import CONSOLE, LOG
from vmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from vmm.api.server import Server
    from vmm.session import Present

Arguments = dict[str, Any]
Command = Callable[["Server", Arguments], dict[str, Any]]

#: How long a guest that is asked to shut down gets by default, in seconds.
STOP_TIMEOUT_S = 20.0
_TIMEOUT_MAX_S = 86400.0
_PIECE = 1024
#: What no reboot takes.
_REBOOT_S = 10.0
_TYPE_TIMEOUT_S = 10.0
#: A guest whose agent does not answer for so long, and it started with the guest, has none.
AGENT_PATIENCE_S = 2.0
_AGAIN_S = 0.02


@contextmanager
def present(server: Server) -> Iterator[Present]:
    """The present machine, which stays until the end of the block. Between two boots the next one is waited for.

    Raises:
        HostError: there is none any more.
    """
    deadline = time.monotonic() + _REBOOT_S
    while True:
        with server.session.presence:
            machine = server.session.machine
            if machine is not None:
                yield machine
                return
        if server.ended.is_set() or time.monotonic() > deadline:
            raise HostError("the guest has ended")
        time.sleep(_AGAIN_S)


def text(arguments: Arguments, name: str) -> str:
    """The argument *name*, which must be there.

    Raises:
        ConfigError: it is not there, or no text.
    """
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ConfigError("must be text" if name in arguments else "is missing", where=name)
    return value


def seconds(arguments: Arguments, name: str, default: float) -> float:
    """The argument *name*.

    Raises:
        ConfigError: it is no number of seconds, or more than a day.
    """
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _TIMEOUT_MAX_S:
        raise ConfigError(f"must be a number of seconds, at most {_TIMEOUT_MAX_S:.0f}", where=name)
    return float(value)


def status(server: Server, _: Arguments) -> dict[str, Any]:
    """What the VM is, and whether it runs."""
    session = server.session
    config, machine = session.config, session.machine
    return {
        "name": server.place.name,
        "state": "ended" if server.ended.is_set() else "paused" if machine and machine.paused else "running",
        "pid": os.getpid(),
        "version": __version__,
        "uptime_s": round(time.monotonic() - server.started_s, 3),
        "cpus": config.cpus,
        "memory_bytes": config.memory_bytes,
        "kernel": os.path.abspath(config.kernel),
        "append": config.append,
        "disks": [os.path.abspath(disk.path) for disk in config.disks],
        "nets": [uplink.name for uplink, _ in session.backends.nets],
        "macs": [mac.hex(":") for _, mac in session.backends.nets],
        "vsock": session.backends.vsock.path if session.backends.vsock else "",
        "transport": config.transport,
        "engine": "native" if session.native else "python",
        "console": server.place.file(CONSOLE),
        "log": server.place.file(LOG),
    }


def stats(server: Server, _: Arguments) -> dict[str, Any]:
    """What the guest has made pyvmm do: exits by kind and register, requests by device, assists with their seconds.

    And what KVM has counted for the present machine.
    """
    session, machine = server.session, server.session.machine
    assists = session.assists
    return {
        "exits": machine.count_exits() if machine else session.exits,
        "kvm": machine.count_kvm() if machine else {},
        "devices": session.devices.counts.copy(),
        "assists": {
            name: {"count": count, "seconds": assists.seconds.get(name, 0.0)}
            for name, count in assists.counts.copy().items()
        },
    }


def kill(server: Server, _: Arguments) -> dict[str, Any]:
    """End the VM; the guest is not asked."""
    server.session.stop("by pyvmm kill")
    return {}


def pause(server: Server, _: Arguments) -> dict[str, Any]:
    """Stop the processors: answered when all of them are out of the guest."""
    with present(server) as machine:
        machine.pause(wait=True)
    return {}


def resume(server: Server, _: Arguments) -> dict[str, Any]:
    """Let the processors go on."""
    with present(server) as machine:
        machine.resume()
    return {}


def stop(server: Server, arguments: Arguments) -> dict[str, Any]:
    """Ask the guest to shut down, and end the VM when it powers off or resets, or after *timeout_s*.

    It is asked by its agent, or by Ctrl-Alt-Del where none answers.
    """
    deadline = time.monotonic() + seconds(arguments, "timeout_s", STOP_TIMEOUT_S)
    with suppress(HostError):  # it is ending already
        with present(server) as machine:
            server.session.shut_down_by = "by pyvmm stop"
            if machine.paused:
                machine.resume()
        if not _agent_powers_off(server, deadline):
            ctrl_alt_del(server, {})
    orderly = server.ended.wait(max(0.0, deadline - time.monotonic()))
    if not orderly:
        server.session.stop("by pyvmm stop")
        server.ended.wait()
    return {"orderly": orderly}


def _agent_powers_off(server: Server, deadline: float) -> bool:
    gate = server.session.backends.vsock
    if gate is None:
        return False
    from vmm.agent.client import Agent

    left_s = max(0.0, deadline - time.monotonic())
    return Agent(gate.path, patience_s=AGENT_PATIENCE_S).power_off(left_s)


def ctrl_alt_del(server: Server, _: Arguments) -> dict[str, Any]:
    """Press Ctrl-Alt-Del in the guest."""
    with present(server) as machine:
        machine.press_ctrl_alt_del()
    return {}


def type_text(server: Server, arguments: Arguments) -> dict[str, Any]:
    """Type *text* at the console: answered when the guest has taken all of it, or its device has."""
    data = text(arguments, "text").encode(errors="replace")
    deadline = time.monotonic() + seconds(arguments, "timeout_s", _TYPE_TIMEOUT_S)
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        while not _typed(server, piece):
            if server.ended.is_set() or time.monotonic() > deadline:
                raise HostError(f"the guest has taken only {start} of {len(data)} bytes")
            time.sleep(_AGAIN_S)
    return {}


def _typed(server: Server, piece: bytes) -> bool:
    with present(server) as machine:
        return machine.type(piece)


def snapshot(server: Server, arguments: Arguments) -> dict[str, Any]:
    """Write all of the machine to the file *path*, building on the snapshot *parent*; answered when it is there.

    With *overlays* what is on these is kept too.
    """
    path = _path(arguments, "path")
    parent = _path(arguments, "parent") if "parent" in arguments else ""
    with present(server) as machine:
        file = machine.begin_snapshot(path, parent, overlays=arguments.get("overlays") is True)
    try:  # others may use the machine, or end it, while it is written
        file.finish()
    finally:
        file.close()
    return {}


def _path(arguments: Arguments, name: str) -> str:
    path = text(arguments, name)
    if not os.path.isabs(path):
        raise ConfigError("must be an absolute path", where=name)
    return path


AT_ONCE: dict[str, Command] = {"status": status, "stats": stats, "kill": kill}
WAITING: dict[str, Command] = {
    "pause": pause,
    "resume": resume,
    "stop": stop,
    "type": type_text,
    "ctrl_alt_del": ctrl_alt_del,
    "snapshot": snapshot,
}
