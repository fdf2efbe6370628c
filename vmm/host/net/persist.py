"""What sets up a physical network when the host boots: a file for the host's own network manager.

What the router gives, by DHCP and by router advertisements, is asked for again; the rest is written down. Files that
the manager had before are not changed: `others` tells which of them have something to say about the NIC.
"""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.host.net.physical import Physical

#: Where the managers' directories are.
ETC = "/etc"
_GIVEN = {2, 9}  # RTPROT_KERNEL, made with an address, and RTPROT_RA, learned from a router: linux/rtnetlink.h
_MAIN_TABLE = 254


class Persistence:
    """The files of *network* for the manager that is to set it up."""

    def __init__(self, network: Physical) -> None:
        self._network = network
        self.what = f"configuration of {network.name} for {network.persist}"

    def describe(self) -> str:
        return "\n".join(f"{path}:\n{text}".rstrip() for path, text in self._files().items())

    def is_done(self) -> bool:
        return all(os.path.exists(path) for path in self._files())  # that somebody has changed them is for them to do

    def do(self) -> None:
        for path, text in self._files().items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            passing = _passing(path)
            with open(os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o600 if path.endswith(".yaml") else 0o644)  # as netplan wants it
            os.replace(passing, path)

    def undo(self) -> None:
        for path in self._files():
            for name in (path, _passing(path)):
                with suppress(FileNotFoundError):
                    os.unlink(name)

    def others(self) -> list[str]:
        """The manager's other files that name the NIC, where both would hold."""
        if self._network.persist == "systemd-networkd":
            return []  # the first file that fits is the one that holds: ours
        own, word = self._files(), re.compile(rf"\b{re.escape(self._network.nic)}\b")
        directory = os.path.dirname(next(iter(own)))
        candidates = [f"{ETC}/network/interfaces", *(os.path.join(directory, name) for name in os.listdir(directory))]
        return sorted(path for path in candidates if path not in own and word.search(_text(path)))

    def _files(self) -> dict[str, str]:
        """The text of each file by its path."""
        return {f"{ETC}/{path}": text for path, text in MANAGERS[self._network.persist](self._network).items()}


def _networkd(network: Physical) -> dict[str, str]:
    """systemd.netdev(5), systemd.network(5)."""
    name, nic, settings = network.name, network.nic, network.settings
    bridge = [f"[Match]\nName={name}\n", f"[Link]\nMTUBytes={settings.mtu}\n", "[Network]"]
    bridge += ["DHCP=ipv4"] if settings.leased else []
    bridge += [f"Address={address}" for address in _addresses(network)]
    bridge += [] if network.ipv6 else ["LinkLocalAddressing=no", "IPv6AcceptRA=no"]
    bridge += [f"DNS={server}" for server in _dns(network, "dns")]
    bridge += [f"Domains={domain}" for domain in _dns(network, "domain")]
    for route in _routes(network):
        words = {
            "Destination": _destination(route),
            "Gateway": route.get("gateway"),
            "Metric": route.get("priority"),
            "Table": _table(route),
            "PreferredSource": route.get("prefsrc"),
            "GatewayOnLink": "yes" if route["flags"] else None,
        }
        bridge += ["\n[Route]", *(f"{key}={value}" for key, value in words.items() if value is not None)]
    return {
        f"systemd/network/00-pyvmm-{name}.netdev": f"[NetDev]\nName={name}\nKind=bridge\nMACAddress={settings.mac}\n",
        f"systemd/network/00-pyvmm-{name}.port.network": (
            f"[Match]\nName={nic}\n\n[Link]\nMTUBytes={settings.mtu}\n\n"
            f"[Network]\nBridge={name}\nLinkLocalAddressing=no\n"
        ),
        f"systemd/network/00-pyvmm-{name}.network": "\n".join(bridge) + "\n",
    }


def _ifupdown(network: Physical) -> dict[str, str]:
    """interfaces(5), with commands of iproute2 for what it has no word for, so that no other package is needed."""
    name, nic, settings = network.name, network.nic, network.settings
    no_ipv6 = "    pre-up echo 1 >/proc/sys/net/ipv6/conf/{}/disable_ipv6 || true"
    lines = [f"auto {name}", f"iface {name} inet {'dhcp' if settings.leased else 'manual'}"]
    lines += [
        f"    pre-up ip link add {name} address {settings.mac} mtu {settings.mtu} type bridge",
        f"    pre-up ip link set {nic} mtu {settings.mtu} master {name} up",
        no_ipv6.format(nic),
        *([] if network.ipv6 else [no_ipv6.format(name)]),
        f"    pre-up ip link set {name} up",
    ]
    lines += [f"    up ip address add {address} dev {name}" for address in _addresses(network)]
    lines += [f"    up {route_command(route, name)}" for route in _routes(network)]
    for word, values in (("nameservers", _dns(network, "dns")), ("search", _dns(network, "domain"))):
        lines += [f"    dns-{word} {' '.join(values)}"] if values else []
    lines.append(f"    post-down ip link del {name}")
    return {f"network/interfaces.d/pyvmm-{name}": "\n".join(lines) + "\n"}


def _netplan(network: Physical) -> dict[str, str]:
    """netplan(5); its YAML may be JSON."""
    settings = network.settings
    routes = [
        {
            "to": _destination(route),
            "via": route.get("gateway"),
            "metric": route.get("priority"),
            "table": _table(route),
            "from": route.get("prefsrc"),
            "on-link": True if route["flags"] else None,
            "scope": None if "gateway" in route else "link",
        }
        for route in _routes(network)
    ]
    servers = {"addresses": _dns(network, "dns") or None, "search": _dns(network, "domain") or None}
    no_ipv6: dict[str, Any] = {"accept-ra": False, "link-local": []}
    bridge = {
        "interfaces": [network.nic],
        "macaddress": settings.mac,
        "mtu": settings.mtu,
        "dhcp4": bool(settings.leased),
        **({} if network.ipv6 else no_ipv6),
        "parameters": {"stp": False},  # netplan's default would keep the host off the network for 30 s
        "addresses": _addresses(network) or None,
        "nameservers": _said(servers) or None,
        "routes": [_said(route) for route in routes] or None,
    }
    port = {"dhcp4": False, "dhcp6": False, **no_ipv6, "mtu": settings.mtu}
    document = {"version": 2, "ethernets": {network.nic: port}, "bridges": {network.name: _said(bridge)}}
    return {f"netplan/90-pyvmm-{network.name}.yaml": json.dumps({"network": document}, indent=2) + "\n"}


#: What writes the files for each network manager, by their paths under `ETC`.
MANAGERS: dict[str, Callable[[Physical], dict[str, str]]] = {
    "systemd-networkd": _networkd,
    "ifupdown": _ifupdown,
    "netplan": _netplan,
}


#: What is there of each manager's, where the host has it.
_SIGNS = {"systemd-networkd": "systemd/network", "ifupdown": "network", "netplan": "netplan"}


def check_manager(name: str) -> str:
    """*name*, if it is a manager that the host has.

    Raises:
        ConfigError: it is not.
    """
    if name not in MANAGERS:
        raise ConfigError(f"{name!r} is none of {', '.join(MANAGERS)}", where="--persist")
    if not os.path.isdir(f"{ETC}/{_SIGNS[name]}"):
        raise ConfigError(f"the host has no {name}: there is no {ETC}/{_SIGNS[name]}", where="--persist")
    return name


def route_command(route: dict[str, Any], device: str) -> str:
    """The command that leads *route*, of `nic.Settings`, through *device*."""
    words = {
        "via": route.get("gateway"),
        "dev": device,
        "metric": route.get("priority"),
        "table": _table(route),
        "src": route.get("prefsrc"),
    }
    said = [f"{key} {value}" for key, value in words.items() if value is not None]
    version = 6 if route["family"] == socket.AF_INET6 else 4
    return " ".join([f"ip -{version} route replace", route["dst"], *said, *(["onlink"] if route["flags"] else [])])


def _addresses(network: Physical) -> list[str]:
    """Those that no router gives."""
    return [
        f"{one['address']}/{one['prefixlen']}"
        for one in network.settings.addresses
        if "IFA_CACHEINFO" not in one and one["address"] not in network.settings.leased
    ]


def _routes(network: Physical) -> list[dict[str, Any]]:
    """Those that no router gives."""
    return [
        route
        for route in network.settings.routes
        if route["proto"] not in _GIVEN and not (route["family"] == socket.AF_INET and network.settings.leased)
    ]


def _dns(network: Physical, what: str) -> list[str]:
    """DNS's servers or domains, unless DHCP gives them."""
    return [] if network.settings.leased else network.settings.dns.get(what, [])


def _destination(route: dict[str, Any]) -> str:
    """Where *route* leads to, with its family."""
    default = "::/0" if route["family"] == socket.AF_INET6 else "0.0.0.0/0"
    return default if route["dst"] == "default" else str(route["dst"])


def _passing(path: str) -> str:
    """A file beside *path* that no manager reads, before it is whole."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")


def _table(route: dict[str, Any]) -> int | None:
    table = route.get("table", _MAIN_TABLE)
    return None if table == _MAIN_TABLE else int(table)


def _said(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # a directory, or gone
        return ""
