"""The kernel's rtnetlink, by pyroute2: what changes the host's devices, and tells what they are.

/sys may show those of another network namespace. Importing pyroute2 costs 150 ms: only managed networks, bridges and
error messages come here.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyroute2 import IPRoute

#: Names of arguments that are numbers of devices, and what `ip` calls them.
_DEVICES = {"index": "dev", "oif": "dev", "ifindex": "dev", "master": "master"}
#: Kinds of devices and of queueing disciplines, and the kernel's modules that have them.
_MODULES = {"bridge": "bridge", "veth": "veth", "tbf": "sch_tbf"}
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x1_0000  # linux/if.h
_TUN_TYPE_TAP = 2


class Link:
    """One network device. `kind` is rtnetlink's (``bridge``, ``tun``, …), or ``physical`` where it has none."""

    __slots__ = ("group", "index", "is_tap", "kind", "mtu", "multi_queue", "owner", "up")

    def __init__(self, message: Any) -> None:
        self.index: int = message["index"]
        self.up = is_up(message)
        self.mtu: int = message.get_attr("IFLA_MTU")
        self.kind: str = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "physical"
        tun = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA") if self.kind == "tun" else None
        self.is_tap: bool = tun is not None and tun.get_attr("IFLA_TUN_TYPE") == _TUN_TYPE_TAP
        self.multi_queue: bool = tun is not None and bool(tun.get_attr("IFLA_TUN_MULTI_QUEUE"))
        #: Who may attach without CAP_NET_ADMIN (uid, gid), if that was said.
        self.owner: int | None = tun and tun.get_attr("IFLA_TUN_OWNER")
        self.group: int | None = tun and tun.get_attr("IFLA_TUN_GROUP")


class Routes:
    """pyroute2's `IPRoute`. A call that the kernel refuses is an `OSError`, whose text says what was called; where the
    kernel lacks what is asked for, a `BackendError`.
    """

    def __init__(self, routes: IPRoute) -> None:
        self._routes = routes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from pyroute2 import NetlinkError

        method = getattr(self._routes, name)

        def call(*command: str, **arguments: Any) -> Any:
            try:
                return method(*command, **arguments)
            except NetlinkError as error:
                _refuse_missing(error.code, arguments.get("kind") or command[-1])
                words = [word for key, value in arguments.items() for word in self._words(key, value)]
                reason = f"{os.strerror(error.code)} (ip {' '.join([name, *command, *words])})"
                raise OSError(error.code, reason) from error

        return call

    def _words(self, key: str, value: Any) -> list[str]:
        if key in _DEVICES and value:
            names = [link.get_attr("IFLA_IFNAME") for link in self._routes.get_links() if link["index"] == value]
            return [_DEVICES[key], *(names or [f"number {value}"])]
        return [] if isinstance(value, dict | bytes) else [key, str(value)]


def _refuse_missing(code: int, kind: str) -> None:
    """Raise if the errno *code* says that the kernel has no *kind* of device or queueing discipline."""
    if kind in _MODULES and code in (errno.EOPNOTSUPP, errno.ENOENT):
        raise BackendError(f"this kernel has no {kind}", fix=f"run: sudo modprobe {_MODULES[kind]}")


@contextmanager
def netlink() -> Iterator[Routes]:
    """An rtnetlink socket."""
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        yield Routes(routes)


@contextmanager
def ignoring(code: int) -> Iterator[None]:
    """The kernel may refuse what is done here with the errno *code*: nothing is to be done then."""
    try:
        yield
    except OSError as error:
        if error.errno != code:
            raise


def find_device(routes: Routes, name: str) -> Any:
    """rtnetlink's message about the device *name*, or None if there is none."""
    try:
        return routes.link("get", ifname=name)[0]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def is_up(link: Any) -> bool:
    """Whether the device of rtnetlink's message *link* is switched on."""
    return bool(link["flags"] & _IFF_UP)


def is_connected(link: Any) -> bool:
    """Whether something is at the other end of the device: of a tap, that a process has it open."""
    return bool(link["flags"] & _IFF_LOWER_UP)


def find_ports(routes: Routes, bridge: str) -> dict[str, Any]:
    """rtnetlink's messages about the ports of the device *bridge*, by name; none without that."""
    found = find_device(routes, bridge)
    if found is None:
        return {}
    links = routes.get_links()
    return {link.get_attr("IFLA_IFNAME"): link for link in links if link.get_attr("IFLA_MASTER") == found["index"]}


def find_link(name: str) -> Link | None:
    """The device *name*, if there is one."""
    with netlink() as routes:
        message = find_device(routes, name)
    return Link(message) if message is not None else None


def tap_holder(name: str) -> str | None:
    """The process (of those we may look into) that has the tap *name* open: its name and pid."""
    ours = os.stat("/proc/self/ns/net").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/net").st_ino == ours and _holds(pid, name):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                    return f"{comm.read().strip()} (pid {pid})"
        except OSError:  # ended meanwhile, or not ours to look at
            continue
    return None


def _holds(pid: str, name: str) -> bool:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/net/tun":
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8") as info:
                if f"iff:\t{name}\n" in info:
                    return True
    return False


def user_name(uid: int) -> str:
    """The login name of *uid*, or the number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
