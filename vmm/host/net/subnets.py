"""Which subnets are free: not the host's, nor on its way anywhere, nor another network's."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

from vmm.errors import ConfigError
from vmm.host.lan.leases import PREFIX as LAN_PREFIX
from vmm.host.net.link import netlink
from vmm.host.net.network import Nat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmm.host.net.record import Network

    Subnet = IPv4Network | IPv6Network

_UNICAST = 1  # RTN_UNICAST, linux/rtnetlink.h


def taken(networks: Sequence[Network]) -> dict[Subnet, str]:
    """The subnets of *networks* and those the host has routes to, with who has each."""
    found: dict[Subnet, str] = {}
    with netlink() as routes:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in routes.get_links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in routes.get_routes(family=family):
                destination = route.get_attr("RTA_DST")
                if route["type"] != _UNICAST or destination is None:
                    continue  # without one it is a default route
                subnet = ip_network((destination, route["dst_len"]), strict=False)
                if not subnet.is_link_local:
                    device = names.get(route.get_attr("RTA_OIF"), "?")
                    found[subnet] = f"the host's route to {subnet} by {device}"
    for network in networks:
        if not isinstance(network, Nat):
            continue  # its routes are among the host's
        found[network.subnet] = f"network {network.name}"
        if network.subnet6:
            found[network.subnet6] = f"network {network.name}"
    return found


def choose_subnet(occupied: Mapping[Subnet, str]) -> IPv4Network:
    """The first of 10.77.0.0/24, 10.77.1.0/24 … that overlaps none of *occupied*, nor the subnet of lans.

    Raises:
        ConfigError: there is none.
    """
    for subnet in _candidates():
        if not any(subnet.version == other.version and subnet.overlaps(other) for other in occupied):
            return subnet
    raise ConfigError("all of 10.77.0.0 … 10.254.255.0 is in use", where="--subnet", fix="say which to use")


def refuse_overlap(subnet: Subnet, occupied: Mapping[Subnet, str], option: str) -> None:
    """Raise `ConfigError` if *subnet*, from the *option*, overlaps one of *occupied*."""
    for other, who in occupied.items():
        if subnet.version == other.version and subnet.overlaps(other):
            raise ConfigError(
                f"{subnet} overlaps {who}", where=option, fix="choose another, or give none: a free one is found"
            )


def _candidates() -> Iterator[IPv4Network]:
    for second in range(77, 255):
        if bytes((10, second)) == LAN_PREFIX:  # a guest may have a card of each kind
            continue
        for third in range(256):
            yield IPv4Network(f"10.{second}.{third}.0/24")
