"""Bridges of the host: that of a managed network, and taps on any, made for one run and gone with it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError
from vmm.host.net.link import Link, find_device, ignoring, is_up, netlink
from vmm.host.tap import TUNSETOWNER, Tap, add_queues, attach, check_name, choose_mtu, open_tun

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from vmm.host.net.link import Routes
    from vmm.host.net.network import Nat

_TAP_MTU_MAX = 65521
_ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
#: That a device makes itself no IPv6 address; to be said before it is up.
_NO_IPV6_ADDRESS = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE)]})]}
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_LINK_LOCAL = "fe80::1"


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
            if link is None or not self._is_ours(link) or not is_up(link):
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
            routes.link("set", index=link["index"], IFLA_AF_SPEC=_NO_IPV6_ADDRESS)
            for family, address, length in self._addresses():
                flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
                with ignoring(errno.EEXIST):
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
                (socket.AF_INET6, _LINK_LOCAL, 64),
                (socket.AF_INET6, self._network.gateway6, self._network.subnet6.prefixlen),
            ]
        return [(family, str(address), length) for family, address, length in addresses]


def create_bridge_tap(
    bridge: str, mtu: int | None = None, queues: int = 1, name: str = "pyvmm%d", owner: int | None = None
) -> Tap:
    """Make a tap ``pyvmmN``, or *name*, on *bridge*. *mtu* in bytes is the guest's, at most (and else) the bridge's.
    The tap is that of the user with the id *owner*; None: ours.

    The tap is not persistent: the kernel takes it off the bridge and deletes it with its last descriptor, however
    the process ends. So a killed run leaves nothing for the next one to clean up.

    Raises:
        ConfigError: *bridge* cannot be a device's name, or *mtu* is larger than the bridge's.
        BackendError: *bridge* is missing, down or no bridge, or we may not make taps. Nothing is left behind.
    """
    check_name(bridge, "bridge")
    with netlink() as routes:
        target = _find_bridge(bridge, routes)
        guest_mtu = choose_mtu(mtu, min(target.mtu, _TAP_MTU_MAX), f"bridge {bridge}", bridge)
        fds = [open_tun()]
        try:
            made = _make_tap(fds, bridge, queues, name, os.geteuid() if owner is None else owner)
            _join(made, target, bridge, routes)
            return Tap(fds, made, guest_mtu)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise


def _find_bridge(name: str, routes: Routes) -> Link:
    where = f"bridge {name}"
    message = find_device(routes, name)
    if message is None:
        raise BackendError(
            "there is no such bridge",
            where=where,
            fix=f"run: sudo ip link add {name} type bridge && sudo ip link set {name} up",
        )
    link = Link(message)
    if link.kind != "bridge":
        raise BackendError(
            f"is no bridge, but a {'tap' if link.is_tap else link.kind} device",
            where=where,
            fix=f"use tap={name}" if link.is_tap else "run `ip link show type bridge` to see the bridges",
        )
    if not link.up:
        raise BackendError("the bridge is down", where=where, fix=f"run: sudo ip link set {name} up")
    return link


def join_bridge(name: str, bridge: str, routes: Routes) -> None:
    """Put the tap *name* on *bridge*, and bring it up.

    Raises:
        BackendError: *bridge* is missing, down or no bridge, or we may not.
    """
    _join(name, _find_bridge(bridge, routes), bridge, routes)


def _make_tap(fds: list[int], bridge: str, queues: int, wanted: str, owner: int) -> str:
    try:
        name = attach(fds[0], wanted, multi_queue=queues > 1)
        fcntl.ioctl(fds[0], TUNSETOWNER, owner)  # of nobody's tap, everybody may have a queue
        add_queues(fds, name, queues)
        return name
    except OSError as error:
        raise _refusal("cannot make a tap for it", bridge, error) from error


def _join(name: str, target: Link, bridge: str, routes: Routes) -> None:
    """Put the tap *name* on the bridge and bring it up, without the host itself taking part through it."""
    try:
        tap = find_device(routes, name)
        index, address = tap["index"], tap.get_attr("IFLA_ADDRESS")
        routes.link(
            "set",
            index=index,
            # A bridge without an address of its own takes its ports' lowest: one with fe in front is the last to be
            # that, so the host's address does not change as guests come and go.
            address="fe" + address[2:],
            # A lower MTU than its own would become the bridge's; the guest is told its own by its card.
            mtu=min(target.mtu, _TAP_MTU_MAX),
            master=target.index,
            IFLA_AF_SPEC=_NO_IPV6_ADDRESS,
        )
        routes.link("set", index=index, state="up")
    except OSError as error:
        raise _refusal("cannot add a tap to it", bridge, error) from error


def _refusal(what: str, bridge: str, error: OSError) -> BackendError:
    where = f"bridge {bridge}"
    if error.errno != errno.EPERM:
        return BackendError(f"{what}: {error.strerror}", where=where)
    return BackendError(
        f"{what}: this needs CAP_NET_ADMIN",
        where=where,
        fix="run pyvmm with sudo, or once make a tap of your own, and use --net tap=NAME:\n"
        f"sudo ip tuntap add dev NAME mode tap user $USER && sudo ip link set NAME master {bridge} up",
    )
