"""The bridge of a managed network, with the host's addresses on it."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    from pyroute2 import IPRoute

    from vmm.host.net.network import Nat

_ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_IFF_UP = 0x1
LINK_LOCAL = "fe80::1"


@contextmanager
def netlink() -> Iterator[IPRoute]:
    """An rtnetlink socket; the kernel's refusals are `OSError`."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as routes:
            yield routes
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def find_device(routes: IPRoute, name: str) -> Any:
    """rtnetlink's message about the device *name*, or None if there is none."""
    from pyroute2 import NetlinkError

    try:
        return routes.link("get", ifname=name)[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


class Bridge:
    """The bridge of *network*, up, with the host's addresses."""

    def __init__(self, network: Nat) -> None:
        self._network = network
        self.what = f"bridge {network.name}"

    def describe(self) -> str:
        name = self._network.name
        lines = [f"ip link add {name} address {self._network.mac} type bridge"]
        lines += [f"ip address add {address}/{length} dev {name}" for _, address, length in self._addresses()]
        return "\n".join([*lines, f"ip link set {name} up"])

    def is_done(self) -> bool:
        with netlink() as routes:
            link = find_device(routes, self._network.name)
            if link is None or not self._is_ours(link) or not link["flags"] & _IFF_UP:
                return False
            there = {
                (message.get_attr("IFA_ADDRESS"), message["prefixlen"])
                for message in routes.get_addr(index=link["index"])
            }
        return {(address, length) for _, address, length in self._addresses()} <= there

    def do(self) -> None:
        name = self._network.name
        with netlink() as routes:
            link = find_device(routes, name)
            if link is None:
                # The address is what tells that the bridge is ours, so it comes with the bridge.
                routes.link("add", ifname=name, kind="bridge", address=self._network.mac)
                link = find_device(routes, name)
            elif not self._is_ours(link):
                raise BackendError(f"there is another device named {name}", fix="choose another name for the network")
            # It has no IPv6 address but those given to it; this must be said before it is up.
            no_addresses = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE)]})]}
            routes.link("set", index=link["index"], IFLA_AF_SPEC=no_addresses)
            for family, address, length in self._addresses():
                flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
                with _unless_there():
                    routes.addr("add", index=link["index"], address=address, prefixlen=length, IFA_FLAGS=flags)
            routes.link("set", index=link["index"], state="up")

    def undo(self) -> None:
        with netlink() as routes:
            link = find_device(routes, self._network.name)
            if link is not None and self._is_ours(link):
                routes.link("del", index=link["index"])

    def _is_ours(self, link: Any) -> bool:
        return bool(
            link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge"
            and link.get_attr("IFLA_ADDRESS") == self._network.mac
        )

    def _addresses(self) -> list[tuple[int, str, int]]:
        """Family, address and prefix length of each of the host's addresses."""
        addresses: list[tuple[int, IPv4Address | IPv6Address | str, int]] = [
            (socket.AF_INET, self._network.gateway, self._network.subnet.prefixlen)
        ]
        if self._network.subnet6 and self._network.gateway6:
            addresses += [
                (socket.AF_INET6, LINK_LOCAL, 64),
                (socket.AF_INET6, self._network.gateway6, self._network.subnet6.prefixlen),
            ]
        return [(family, str(address), length) for family, address, length in addresses]


@contextmanager
def _unless_there() -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
