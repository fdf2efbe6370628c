"""What a network device of the host is: asked through rtnetlink, as /sys may show another network namespace.

Importing pyroute2 costs 150 ms: only bridges and error messages come here.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_IFF_UP = 0x1
_TUN_TYPE_TAP = 2


class Link:
    """One network device. `kind` is rtnetlink's (``bridge``, ``tun``, …), or ``physical`` where it has none."""

    __slots__ = ("group", "index", "is_tap", "kind", "mtu", "multi_queue", "owner", "up")

    def __init__(self, message: Any) -> None:
        self.index: int = message["index"]
        self.up = bool(message["flags"] & _IFF_UP)
        self.mtu: int = message.get_attr("IFLA_MTU")
        self.kind: str = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "physical"
        tun = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA") if self.kind == "tun" else None
        self.is_tap: bool = tun is not None and tun.get_attr("IFLA_TUN_TYPE") == _TUN_TYPE_TAP
        self.multi_queue: bool = tun is not None and bool(tun.get_attr("IFLA_TUN_MULTI_QUEUE"))
        #: Who may attach without CAP_NET_ADMIN (uid, gid), if that was said.
        self.owner: int | None = tun and tun.get_attr("IFLA_TUN_OWNER")
        self.group: int | None = tun and tun.get_attr("IFLA_TUN_GROUP")


def find_link(name: str, routes: IPRoute | None = None) -> Link | None:
    """The device *name*, if there is one; asked through *routes* where that is open already."""
    from pyroute2 import IPRoute, NetlinkError

    if routes is None:
        with IPRoute() as opened:
            return find_link(name, opened)
    try:
        return Link(routes.link("get", ifname=name)[0])
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


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
