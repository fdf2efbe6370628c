"""What a managed network is like now: its parts, and who is on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError
from vmm.host.net.guests import read_guests
from vmm.host.net.link import find_device, find_ports, is_connected, netlink
from vmm.host.net.network import Nat
from vmm.host.net.networks import all_networks, all_steps
from vmm.host.net.record import read_record

if TYPE_CHECKING:
    from vmm.host.net.link import Routes
    from vmm.host.net.record import Network
    from vmm.host.net.store import Store
    from vmm.host.net.transaction import Step

_MAIN_TABLE = 254


def status(store: Store, network: Network) -> dict[str, Any]:
    """*network* as a JSON document: keys may be added to it, but none changed or removed.

    Counters are in bytes and packets, from the guest's side; those of the bridge's are the host's with all guests.
    """
    record = read_record(store, network.name)
    guests = read_guests(store, network.name)
    leases = _leases(store, network)
    with netlink() as routes:
        uplinks = _uplinks(routes)
        bridge, ports = find_device(routes, network.name), find_ports(routes, network.name)
    by_tap = {guest.tap: guest for guest in guests.values()}
    rows = [
        {
            "name": guest.name,
            "mac": guest.mac,
            "address": guest.address and str(guest.address),
            "attached": guest.attached,
            "limit": guest.limit and vars(guest.limit),
            **_port(guest.tap, ports.get(guest.tap)),
        }
        for guest in guests.values()
    ]
    rows += [
        {"name": None, "mac": None, "address": None, "attached": False, "limit": None, **_port(name, link)}
        for name, link in ports.items()
        if name not in by_tap and (isinstance(network, Nat) or name != network.nic)
    ]
    known = {guest.mac for guest in guests.values()}
    return {
        "name": network.name,
        "kind": network.kind,
        "bridge": network.name,
        **_own(network),
        "ready": record is not None and record.is_finished,
        "trial": record is not None and record.state == "trial",
        "parts": {step.what: _is_done(step) for step in all_steps(store, network)},
        "uplinks": uplinks if isinstance(network, Nat) else [network.nic],
        **_counters(bridge),
        "guests": rows,
        "leases": [lease for lease in leases if lease["mac"] not in known],
    }


def _is_done(step: Step) -> bool | None:
    """Whether *step* is done; None: that only root may know, or what would tell is not here."""
    try:
        return step.is_done()
    except (PermissionError, BackendError):  # nft(8) is in none of the directories of an ordinary user's PATH
        return None


def _own(network: Network) -> dict[str, Any]:
    """What the host has on it, by the network's kind."""
    if not isinstance(network, Nat):
        addresses = [f"{one['address']}/{one['prefixlen']}" for one in network.settings.addresses]
        return {"mac": network.settings.mac, "addresses": addresses, "subnets": [], "limit": None}
    both = [(network.gateway, network.subnet), (network.gateway6, network.subnet6)]
    return {
        "mac": network.mac,
        "addresses": [f"{address}/{subnet.prefixlen}" for address, subnet in both if subnet],
        "subnets": [str(subnet) for _, subnet in both if subnet],
        "limit": network.limit and vars(network.limit),
    }


def status_of_all(store: Store) -> list[dict[str, Any]]:
    """All networks, unfinished ones too, as `status` has them."""
    return [status(store, network) for network in all_networks(store)]


def _port(name: str, link: Any) -> dict[str, Any]:
    """The bridge's port *name*, None if it is absent. What the host receives there the guest has sent."""
    counters = _counters(link)
    return {
        "device": name,
        "there": link is not None,
        "running": link is not None and is_connected(link),
        "rx_bytes": counters["tx_bytes"],
        "rx_packets": counters["tx_packets"],
        "tx_bytes": counters["rx_bytes"],
        "tx_packets": counters["rx_packets"],
    }


def _counters(link: Any) -> dict[str, int]:
    names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
    counted = link.get_attr("IFLA_STATS64") if link is not None else None
    return {name: counted[name] if counted else 0 for name in names}


def _uplinks(routes: Routes) -> list[str]:
    """The devices of the host's default routes."""
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in routes.get_links()}
    defaults = [
        route
        for route in routes.get_routes(table=_MAIN_TABLE)
        if not route["dst_len"] and route["type"] == 1 and route.get_attr("RTA_OIF")
    ]
    return sorted({names[route.get_attr("RTA_OIF")] for route in defaults})


def _leases(store: Store, network: Network) -> list[dict[str, str]]:
    """The addresses that dnsmasq has given away: a line each of expiry, MAC, address, name and client id."""
    try:
        with open(store.path(network.name, "leases"), encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return []
    return [
        {"mac": fields[1], "address": fields[2], "name": fields[3]}
        for fields in lines
        if len(fields) == 5 and ":" in fields[1]
    ]
