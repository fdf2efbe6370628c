"""What a managed network behind NAT is to be, and what networks may be called."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, ClassVar

from vmm.config import NET_WORDS, Rate
from vmm.errors import ConfigError
from vmm.mac import format_mac

#: The network that is made when a guest first needs it.
DEFAULT = "nat"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,13}[a-z0-9]|[a-z]")
_LONGEST_PREFIX = 29
IPV6_PREFIX = 64


@dataclass(frozen=True)
class Nat:
    """A network behind NAT: the bridge *name*, on which the host is the first address of each subnet.

    *mac* is the bridge's, and made up for it: by it a bridge is known to be this one.
    """

    name: str
    mac: str
    subnet: IPv4Network
    subnet6: IPv6Network | None = None
    kind: ClassVar = "nat"
    #: Bytes a second, each way, of all traffic with the world.
    limit: Rate | None = None

    @property
    def gateway(self) -> IPv4Address:
        """The host's address."""
        return self.subnet[1]

    @property
    def gateway6(self) -> IPv6Address | None:
        """The host's IPv6 address."""
        return self.subnet6[1] if self.subnet6 else None

    @property
    def middle(self) -> int:
        """The first address, as an offset in the subnet, of those that belong to guests with names."""
        return self.subnet.num_addresses // 2

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            "kind": self.kind,
            "name": self.name,
            "mac": self.mac,
            "subnet": str(self.subnet),
            "subnet6": self.subnet6 and str(self.subnet6),
            "limit": self.limit and vars(self.limit),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Nat:
        """The network that `to_json` made *document* of."""
        return cls(
            name=document["name"],
            mac=document["mac"],
            subnet=IPv4Network(document["subnet"]),
            subnet6=IPv6Network(document["subnet6"]) if document["subnet6"] else None,
            limit=Rate(**document["limit"]) if document["limit"] else None,
        )


def check_name(name: str, what: str = "network") -> str:
    """*name*, if it can be a network's or a guest's: the name of a device and of a DNS domain.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a {what}",
            where="pyvmm net",
            fix="it must have 1 to 15 characters of a-z, 0-9 and -, beginning with a letter and not ending with -",
        )
    if what == "network" and name in NET_WORDS:
        raise ConfigError(f"{name!r} cannot be the name of a network: --net {name} means something else")
    return name


def parse_subnet(text: str) -> IPv4Network:
    """The IPv4 subnet written as *text*, such as ``10.77.0.0/24``.

    Raises:
        ConfigError: it is none, is too small, or is none for private use.
    """
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no subnet: {error}", where="--subnet", fix="such as 10.77.0.0/24") from None
    if subnet.prefixlen > _LONGEST_PREFIX:
        raise ConfigError(f"{text} has no room for guests", where="--subnet", fix=f"/{_LONGEST_PREFIX} is the smallest")
    if not subnet.is_private:
        raise ConfigError(
            f"{text} is the Internet's, not for private use", where="--subnet", fix="such as 10.77.0.0/24"
        )
    return subnet


def parse_subnet6(text: str) -> IPv6Network:
    """The IPv6 subnet written as *text*, such as ``fd00:77::/64``; ``auto``: one made up.

    Raises:
        ConfigError: it is none, or not of 64 bits.
    """
    if text == "auto":  # a unique local prefix is random (RFC 4193 §3.2)
        return IPv6Network((b"\xfd" + os.urandom(5) + bytes(10), IPV6_PREFIX))
    try:
        subnet = IPv6Network(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no subnet: {error}", where="--ipv6", fix="such as auto, fd00:77::/64") from None
    if subnet.prefixlen != IPV6_PREFIX:
        raise ConfigError(f"{text} is no /64, which guests need to choose addresses", where="--ipv6")
    return subnet


def make_mac() -> str:
    """An Ethernet address that nothing else has."""
    return format_mac(b"\x52\x54" + os.urandom(4))
