"""What a network device has that moves with it onto a bridge: addresses, routes, MTU and DNS servers."""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm.host.net.device import find_device, netlink

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_FOREVER = 0xFFFF_FFFF
_KERNEL = 2  # RTPROT_KERNEL, linux/rtnetlink.h: made with an address
_UNICAST = 1  # RTN_UNICAST
_SCOPE_LINK = 253  # RT_SCOPE_LINK: of link-local addresses, which each device makes itself
_USER_HZ = 100
_IPV6_SWITCH = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"
# linux/if_addr.h
_NODAD, _TEMPORARY, _MANAGE_TEMPORARY, _NO_PREFIX_ROUTE = 0x02, 0x01, 0x100, 0x200
_ROUTE_ATTRIBUTES = {
    "RTA_GATEWAY": "gateway",
    "RTA_PREFSRC": "prefsrc",
    "RTA_PRIORITY": "priority",
    "RTA_TABLE": "table",
}


@dataclass(frozen=True)
class Settings:
    """Of one device: its addresses and routes as what pyroute2 takes, but for the device; DNS as resolvectl has it."""

    mac: str
    mtu: int
    addresses: list[dict[str, Any]]
    routes: list[dict[str, Any]]
    dns: dict[str, list[str]]

    @property
    def gateways(self) -> list[str]:
        """The routers that are reached through it."""
        return sorted({route["gateway"] for route in self.routes if "gateway" in route})


def read_settings(routes: IPRoute, name: str) -> Settings:
    """What the device *name* has now."""
    link = find_device(routes, name)
    index = link["index"]
    found = [
        _route(message)
        for family in (socket.AF_INET6, socket.AF_INET)
        for message in routes.get_routes(family=family)
        if message.get_attr("RTA_OIF") == index and message["type"] == _UNICAST and message["proto"] != _KERNEL
    ]
    return Settings(
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        addresses=[
            _address(message)
            for message in routes.get_addr(index=index)
            if message["scope"] != _SCOPE_LINK and not _is_temporary(message)
        ],
        # Those to gateways come after those that lead to the gateways.
        routes=sorted(found, key=lambda route: "gateway" in route),
        dns=_read_dns(name),
    )


def add_addresses(routes: IPRoute, name: str, settings: Settings) -> None:
    """Give the device *name* the addresses of *settings*; those that it has it keeps."""
    index = find_device(routes, name)["index"]
    for address in settings.addresses:
        _unless(errno.EEXIST, lambda address=address: routes.addr("add", index=index, **address))


def remove_addresses(routes: IPRoute, name: str, settings: Settings) -> None:
    """Take the addresses of *settings* from the device *name*."""
    index = find_device(routes, name)["index"]
    for address in settings.addresses:
        key = {part: address[part] for part in ("family", "local", "prefixlen", "address") if part in address}
        _unless(errno.EADDRNOTAVAIL, lambda key=key: routes.addr("del", index=index, **key))


def lead_routes(routes: IPRoute, name: str, settings: Settings) -> None:
    """Lead the routes of *settings* through the device *name*, each replaced in one stroke."""
    index = find_device(routes, name)["index"]
    for route in settings.routes:
        own = {key: value for key, value in route.items() if key != "expires"}
        if "expires" in route:
            own["RTA_EXPIRES"] = struct.pack("=I", route["expires"])  # pyroute2 knows its number, not its form
        routes.route("replace", oif=index, **own)


def set_dns(name: str, settings: Settings) -> None:
    """Tell systemd-resolved, if it runs, which servers and domains the device *name* leads to."""
    for what, values in settings.dns.items():
        subprocess.run(["resolvectl", what, name, *values], check=False, capture_output=True)


def _read_dns(name: str) -> dict[str, list[str]]:
    if shutil.which("resolvectl") is None:
        return {}
    found = {}
    for what in ("dns", "domain"):
        done = subprocess.run(["resolvectl", what, name], check=False, capture_output=True, text=True)
        values = done.stdout.partition("):")[2].split()  # Link 2 (eth0): 192.0.2.53
        if done.returncode == 0 and values:
            found[what] = values
    return found


def _flags(message: Any) -> int:
    flags = message.get_attr("IFA_FLAGS")
    return int(message["flags"] if flags is None else flags)


def _is_temporary(message: Any) -> bool:
    """Whether it is a privacy address of IPv6, which the device makes itself; of IPv4 the flag says secondary."""
    return message["family"] == socket.AF_INET6 and bool(_flags(message) & _TEMPORARY)


def _address(message: Any) -> dict[str, Any]:
    address = {
        "family": message["family"],
        "prefixlen": message["prefixlen"],
        "address": message.get_attr("IFA_ADDRESS"),
    }
    for attribute, name in (("IFA_LOCAL", "local"), ("IFA_BROADCAST", "broadcast")):
        if message.get_attr(attribute):
            address[name] = message.get_attr(attribute)
    priority = message.get_attr("IFA_RT_PRIORITY")
    if priority:
        address["IFA_RT_PRIORITY"] = priority
    flags = _flags(message) & (_MANAGE_TEMPORARY | _NO_PREFIX_ROUTE)
    if message["family"] == socket.AF_INET6:
        flags |= _NODAD  # it was found to be nobody else's
        times = message.get_attr("IFA_CACHEINFO")
        if times["ifa_valid"] != _FOREVER:
            address["IFA_CACHEINFO"] = {key: times[key] for key in ("ifa_preferred", "ifa_valid")}
    # An IPv4 address that somebody leased stays: to lose it with the lease would lock out whoever works through it.
    address["IFA_FLAGS"] = flags
    return address


def _route(message: Any) -> dict[str, Any]:
    route = {
        "family": message["family"],
        "dst": f"{message.get_attr('RTA_DST')}/{message['dst_len']}" if message["dst_len"] else "default",
        "proto": message["proto"],
        "scope": message["scope"],
        "flags": message["flags"] & 0x4,  # RTNH_F_ONLINK
    }
    for attribute, name in _ROUTE_ATTRIBUTES.items():
        value = message.get_attr(attribute)
        if value is not None:
            route[name] = value
    expires = (message.get_attr("RTA_CACHEINFO") or {}).get("rta_expires", 0)
    if message["family"] == socket.AF_INET6 and expires > 0:
        route["expires"] = expires // _USER_HZ
    return route


def _unless(code: int, change: Any) -> None:
    from pyroute2 import NetlinkError

    try:
        change()
    except NetlinkError as error:
        if error.code != code:
            raise


def is_leased(name: str) -> bool:
    """Whether an IPv4 address of the device *name* ends by itself: DHCP has given it."""
    with netlink() as routes:
        link = find_device(routes, name)
        addresses = list(routes.get_addr(index=link["index"], family=socket.AF_INET)) if link is not None else []
    return any(message.get_attr("IFA_CACHEINFO")["ifa_valid"] != _FOREVER for message in addresses)


def has_ipv6(name: str) -> bool:
    """Whether the device *name* may have IPv6 addresses."""
    try:
        with open(_IPV6_SWITCH.format(name), encoding="ascii") as file:
            return file.read() == "0\n"
    except FileNotFoundError:  # the kernel has none
        return False


def set_ipv6(name: str, *, on: bool) -> None:
    """Let the device *name* have IPv6, or take it and its IPv6 addresses away."""
    if on != has_ipv6(name):
        with suppress(FileNotFoundError), open(_IPV6_SWITCH.format(name), "w", encoding="ascii") as file:
            file.write("0" if on else "1")
