"""Taps on a bridge of the host: made for one run, gone with it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmm.errors import BackendError
from vmm.host.net.link import find_link
from vmm.host.tap import Tap, add_queues, attach, check_name, choose_mtu, open_tun

if TYPE_CHECKING:
    from pyroute2 import IPRoute

    from vmm.host.net.link import Link

_TAP_MTU_MAX = 65521
_ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h


def create_bridge_tap(bridge: str, mtu: int | None = None, queues: int = 1, name: str = "pyvmm%d") -> Tap:
    """Make a tap ``pyvmmN``, or *name*, on *bridge*. *mtu* in bytes is the guest's, at most (and else) the bridge's.

    The tap is not persistent: the kernel takes it off the bridge and deletes it with its last descriptor, however
    the process ends. So a killed run leaves nothing for the next one to clean up.

    Raises:
        ConfigError: *bridge* cannot be a device's name, or *mtu* is larger than the bridge's.
        BackendError: *bridge* is missing, down or no bridge, or we may not make taps. Nothing is left behind.
    """
    from pyroute2 import IPRoute

    check_name(bridge, "bridge")
    with IPRoute() as routes:
        target = _find_bridge(bridge, routes)
        guest_mtu = choose_mtu(mtu, min(target.mtu, _TAP_MTU_MAX), f"bridge {bridge}", bridge)
        fds = [open_tun()]
        try:
            made = _make_tap(fds, bridge, queues, name)
            _join(made, target, bridge, routes)
            return Tap(fds, made, guest_mtu)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise


def _find_bridge(name: str, routes: IPRoute) -> Link:
    where = f"bridge {name}"
    link = find_link(name, routes)
    if link is None:
        raise BackendError(
            "there is no such bridge",
            where=where,
            fix=f"run: sudo ip link add {name} type bridge && sudo ip link set {name} up",
        )
    if link.kind != "bridge":
        raise BackendError(
            f"is no bridge, but a {'tap' if link.is_tap else link.kind} device",
            where=where,
            fix=f"use tap={name}" if link.is_tap else "run `ip link show type bridge` to see the bridges",
        )
    if not link.up:
        raise BackendError("the bridge is down", where=where, fix=f"run: sudo ip link set {name} up")
    return link


def join_bridge(name: str, bridge: str, routes: IPRoute) -> None:
    """Put the tap *name* on *bridge*, and bring it up.

    Raises:
        BackendError: *bridge* is missing, down or no bridge, or we may not.
    """
    _join(name, _find_bridge(bridge, routes), bridge, routes)


def _make_tap(fds: list[int], bridge: str, queues: int, wanted: str) -> str:
    try:
        name = attach(fds[0], wanted, multi_queue=queues > 1)
        add_queues(fds, name, queues)
        return name
    except OSError as error:
        raise _refusal("cannot make a tap for it", bridge, error.errno or 0) from error


def _join(name: str, target: Link, bridge: str, routes: IPRoute) -> None:
    """Put the tap *name* on the bridge and bring it up, without the host itself taking part through it."""
    from pyroute2 import NetlinkError

    try:
        index = routes.link_lookup(ifname=name)[0]
        address = routes.link("get", index=index)[0].get_attr("IFLA_ADDRESS")
        routes.link(
            "set",
            index=index,
            # A bridge without an address of its own takes its ports' lowest: one with fe in front is the last to be
            # that, so the host's address does not change as guests come and go.
            address="fe" + address[2:],
            # A lower MTU than its own would become the bridge's; the guest is told its own by its card.
            mtu=min(target.mtu, _TAP_MTU_MAX),
            master=target.index,
            # The host's end needs no IPv6 address; this must be said before the tap is up.
            IFLA_AF_SPEC={"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE)]})]},
        )
        routes.link("set", index=index, state="up")
    except NetlinkError as error:
        raise _refusal("cannot add a tap to it", bridge, error.code) from error


def _refusal(what: str, bridge: str, code: int) -> BackendError:
    where = f"bridge {bridge}"
    if code != errno.EPERM:
        return BackendError(f"{what}: {os.strerror(code)}", where=where)
    return BackendError(
        f"{what}: this needs CAP_NET_ADMIN",
        where=where,
        fix="run pyvmm with sudo, or once make a tap of your own, and use --net tap=NAME:\n"
        f"sudo ip tuntap add dev NAME mode tap user $USER && sudo ip link set NAME master {bridge} up",
    )
