"""The world outside without any right: passt (https://passt.top), which is to the guest a router with DHCP and DNS.

Each card has a passt of its own, on a socket pair. It goes to the background by itself once it is ready, and ends when
our end of the socket is closed, however this process ends.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time

from vmm.errors import BackendError, ConfigError
from vmm.host.uplink import StreamUplink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config import Forward

#: Large frames are what make it fast, as it ends TCP itself; the kernel takes those of this size whole or not at all.
MTU = 32768
_READY_S = 10.0
#: One that has just been killed keeps its ports a little longer than its socket.
_DYING_S, _LOOK_S = 1.0, 0.02
_IN_USE = "is the port in use? `ss -tulpn` shows by whom; ports below 1024 are root's"
_SOCKET_BYTES = 1 << 20


def open_passt(mtu: int | None = None, forwards: Sequence[Forward] = ()) -> StreamUplink:
    """Start a passt with *forwards* from the host's ports to the guest's; should it die, another one is started.

    *mtu* in bytes is the guest's.

    Raises:
        ConfigError: *mtu* is too large.
        BackendError: passt is not installed or does not start: a port is in use, or the host has no network itself.
    """
    if mtu is not None and mtu > MTU:
        raise ConfigError(f"mtu={mtu} is more than the {MTU} of passt's cards", where="--net user")
    chosen = mtu or MTU
    return StreamUplink("passt", chosen, lambda: _start(chosen, forwards))


def _start(mtu: int, forwards: Sequence[Forward]) -> socket.socket:
    ours, theirs = socket.socketpair()
    try:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        with theirs:
            _run(["passt", "--stderr", "--quiet", "--mtu", str(mtu), *_ports(forwards)], theirs.fileno())
    except BaseException:
        ours.close()
        raise
    return ours


def _ports(forwards: Sequence[Forward]) -> list[str]:
    options = []
    for forward in forwards:
        kind = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        options += [kind, f"{forward.address}/{forward.host_port}:{forward.guest_port}"]
    return options


def _run(command: list[str], fd: int) -> None:
    """Until passt is ready."""
    given_up_s = time.monotonic() + _DYING_S
    while said := _failure([*command, "--fd", str(fd)], fd):
        fix = _fix(" ".join(said))
        if fix is not _IN_USE or time.monotonic() > given_up_s:
            raise BackendError(f"passt does not start: {said[-1]}", where="--net user", fix=fix)
        time.sleep(_LOOK_S)


def _failure(command: list[str], fd: int) -> list[str]:
    """Start it; what it says if it fails."""
    try:
        done = subprocess.run(
            command, pass_fds=[fd], timeout=_READY_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        missing = error.errno == errno.ENOENT
        raise BackendError(
            "passt is not installed" if missing else f"cannot run passt: {os.strerror(error.errno or 0)}",
            where="--net user",
            fix="run: sudo apt install passt" if missing else "",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"passt is not ready after {_READY_S:.0f} seconds", where="--net user") from error
    if not done.returncode:
        return []
    lines = done.stderr.decode(errors="replace").splitlines()
    # What it says to a syslog that is not there is in its way.
    said = [line for line in lines if line and "syslog" not in line and "root" not in line]
    return said or [f"code {done.returncode}"]


def _fix(said: str) -> str:
    if "bind" in said:
        return _IN_USE
    if "interface" in said or "routable" in said:
        return "the host needs an address and a default route itself: see `ip route`"
    return ""
