"""What a network device has that moves with it onto a bridge: addresses, routes, MTU and DNS servers."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from vmm.host.net.link import find_device, ignoring

if TYPE_CHECKING:
    from vmm.host.net.link import Routes

_FOREVER = 0xFFFF_FFFF
# linux/rtnetlink.h: made with an address; learned from a router advertisement
_KERNEL, _RA = 2, 9  # RTPROT_KERNEL, RTPROT_RA
_UNICAST = 1  # RTN_UNICAST
_SCOPE_LINK = 253  # RT_SCOPE_LINK: of link-local addresses, which each device makes itself
_USER_HZ = 100
_SYSCTLS = "/proc/sys/net/{}/conf/{}"
#: How long a device may take to hear of its routers: it asks them at once, and again after 4 s (RFC 4861 §6.3.7).
_LEARN_S, _POLL_S = 6.0, 0.05
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
    """Of one device: its addresses and routes as what pyroute2 takes, but for the device; DNS as resolvectl has it.

    *leased* are those IPv4 addresses that end by themselves: DHCP has given them.
    """

    mac: str
    mtu: int
    addresses: list[dict[str, Any]]
    leased: list[str]
    routes: list[dict[str, Any]]
    dns: dict[str, list[str]]

    @property
    def gateways(self) -> list[str]:
        """The routers that are reached through it."""
        return sorted({route["gateway"] for route in self.routes if "gateway" in route})


def read_settings(routes: Routes, name: str) -> Settings:
    """What the device *name* has now."""
    link = find_device(routes, name)
    index = link["index"]
    addresses = list(routes.get_addr(index=index))
    bare = {_subnet(message) for message in addresses if _flags(message) & _NO_PREFIX_ROUTE}
    there = [
        _route(message)
        for family in (socket.AF_INET6, socket.AF_INET)
        for message in routes.get_routes(family=family)
        if message.get_attr("RTA_OIF") == index
        and message["type"] == _UNICAST
        # What a manager made as the kernel's comes with no address.
        and (message["proto"] != _KERNEL or _destination(message) in bare)
    ]
    needless = [_key(_stand_in(route)) for route in there if _is_announced(route)]
    found = [route for route in there if _key(route) not in needless]
    return Settings(
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        addresses=[_address(message) for message in addresses if message["scope"] != _SCOPE_LINK],
        leased=[message.get_attr("IFA_ADDRESS") for message in addresses if _is_leased(message)],
        # Those to gateways come after those that lead to the gateways.
        routes=sorted(found, key=lambda route: "gateway" in route),
        dns=_read_dns(name),
    )


def has_multipath(routes: Routes, name: str) -> bool:
    """Whether a route has several next hops, of which the device *name* is one."""
    index = find_device(routes, name)["index"]
    hops = [hop for message in routes.get_routes() for hop in message.get_attr("RTA_MULTIPATH") or []]
    return any(hop["oif"] == index for hop in hops)


def add_addresses(routes: Routes, name: str, settings: Settings) -> None:
    """Give the device *name* the addresses of *settings*; those that it has it keeps."""
    index = find_device(routes, name)["index"]
    for address in settings.addresses:
        with ignoring(errno.EEXIST):
            if address["family"] == socket.AF_INET6 and not address["IFA_FLAGS"] & _NODAD:
                # It was found to be nobody else's, and is to be of use at once.
                routes.addr("add", index=index, **address | {"IFA_FLAGS": address["IFA_FLAGS"] | _NODAD})
                routes.addr("replace", index=index, **address)
            else:
                routes.addr("add", index=index, **address)


def remove_addresses(routes: Routes, name: str, settings: Settings) -> None:
    """Take the addresses of *settings* from the device *name*."""
    index = find_device(routes, name)["index"]
    for address in settings.addresses:
        key = {part: address[part] for part in ("family", "local", "prefixlen", "address") if part in address}
        with ignoring(errno.EADDRNOTAVAIL):
            routes.addr("del", index=index, **key)


def replace_routes(routes: Routes, name: str, settings: Settings) -> None:
    """Lead the routes of *settings* through the device *name*, each replaced in one stroke.

    What routers announce the kernel learns by itself there, in a moment, and would not take ours for it. So ours is a
    stand-in of lesser rank; see `drop_stand_ins`.
    """
    index, learns = find_device(routes, name)["index"], _learns_routes(name)
    for route in settings.routes:
        placed = _stand_in(route) if learns and _is_announced(route) else route
        own = {key: value for key, value in placed.items() if key != "expires"}
        if "expires" in placed:
            own["RTA_EXPIRES"] = struct.pack("=I", placed["expires"])  # pyroute2 knows its number, not its form
        routes.route("replace", oif=index, **own)


def drop_stand_ins(routes: Routes, name: str, settings: Settings) -> None:
    """Wait until the device *name* has learned the routes of *settings* that routers announce, and drop ours.

    What it has not learned in some seconds stays until it expires.
    """
    if not _learns_routes(name):
        return
    index, deadline = find_device(routes, name)["index"], time.monotonic() + _LEARN_S
    waiting = [route for route in settings.routes if _is_announced(route)]
    while waiting and time.monotonic() < deadline:
        messages = routes.get_routes(family=socket.AF_INET6)
        there = [_key(_route(message)) for message in messages if message.get_attr("RTA_OIF") == index]
        for route in [route for route in waiting if _key(route) in there]:
            waiting.remove(route)
            with ignoring(errno.ESRCH):
                routes.route("del", oif=index, **_key(_stand_in(route)))
        time.sleep(_POLL_S)


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
    if message["family"] == socket.AF_INET6:
        times = message.get_attr("IFA_CACHEINFO")
        if times["ifa_valid"] != _FOREVER:
            address["IFA_CACHEINFO"] = {key: times[key] for key in ("ifa_preferred", "ifa_valid")}
        if _flags(message) & _TEMPORARY:  # a privacy address: the device makes new ones, this is for its connections
            address["IFA_CACHEINFO"] |= {"ifa_preferred": 0}
    # An IPv4 address that somebody leased stays: to lose it with the lease would lock out whoever works through it.
    address["IFA_FLAGS"] = _flags(message) & (_NODAD | _MANAGE_TEMPORARY | _NO_PREFIX_ROUTE)
    return address


def _route(message: Any) -> dict[str, Any]:
    route = {
        "family": message["family"],
        "dst": _destination(message),
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


def _is_announced(route: dict[str, Any]) -> bool:
    return bool(route["proto"] == _RA and "gateway" in route)


def _stand_in(route: dict[str, Any]) -> dict[str, Any]:
    """What is there for the announced *route* until the device has learned that."""
    return route | {"priority": route["priority"] + 1}


def _key(route: dict[str, Any]) -> dict[str, Any]:
    """What tells *route* from others of its device."""
    return {key: route[key] for key in ("family", "dst", "gateway", "priority", "proto") if key in route}


def _learns_routes(name: str) -> bool:
    """Whether the kernel takes routes from the advertisements that come to the device *name*."""
    with suppress(FileNotFoundError):  # there is no IPv6
        accepts, forwards = (_read(_SYSCTLS.format("ipv6", name) + f"/{key}") for key in ("accept_ra", "forwarding"))
        return accepts == "2\n" or (accepts == "1\n" and forwards == "0\n")
    return False


def _destination(message: Any) -> str:
    return f"{message.get_attr('RTA_DST')}/{message['dst_len']}" if message["dst_len"] else "default"


def _subnet(message: Any) -> str:
    return str(ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}").network)


def _is_leased(message: Any) -> bool:
    return bool(message["family"] == socket.AF_INET and message.get_attr("IFA_CACHEINFO")["ifa_valid"] != _FOREVER)


def copy_sysctls(source: str, target: str) -> None:
    """Give the device *target* all settings of the device *source*, but for whether it has IPv6 at all."""
    for version in ("ipv4", "ipv6"):
        own, others = _SYSCTLS.format(version, target), _SYSCTLS.format(version, source)
        for name in os.listdir(own) if os.path.isdir(own) else []:
            if name == "disable_ipv6":
                continue
            with suppress(OSError):  # some are only written, or not yet
                value = _read(f"{others}/{name}")
                if value != _read(f"{own}/{name}"):
                    _write(f"{own}/{name}", value)


def has_ipv6(name: str) -> bool:
    """Whether the device *name* may have IPv6 addresses."""
    with suppress(FileNotFoundError):  # the kernel has none
        return _read(_IPV6_SWITCH.format(name)) == "0\n"
    return False


def set_ipv6(name: str, *, on: bool) -> None:
    """Let the device *name* have IPv6, or take it and its IPv6 addresses away."""
    if on != has_ipv6(name):
        with suppress(FileNotFoundError):
            _write(_IPV6_SWITCH.format(name), "0" if on else "1")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
