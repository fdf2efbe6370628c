"""Managed networks: made and taken away as wholes, and mended."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError, ConfigError
from vmm.host.net.device import Bridge, find_device, netlink
from vmm.host.net.dnsmasq import Dnsmasq
from vmm.host.net.forwarding import Forwarding
from vmm.host.net.guests import guest_steps, read_guests
from vmm.host.net.network import Network, make_mac
from vmm.host.net.rules import Rules
from vmm.host.net.shaping import Shaping
from vmm.host.net.subnets import choose_subnet, refuse_overlap, taken
from vmm.host.net.transaction import apply, mend, revert

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from vmm.config import Rate
    from vmm.host.net.store import Store
    from vmm.host.net.transaction import Step

_FILE = "network.json"
_LOWER_UP = 0x1_0000  # IFF_LOWER_UP, linux/if.h: of a tap, that a process has it open


def network_steps(store: Store, network: Network) -> list[Step]:
    """What *network* consists of, in the order in which it is made: closed before it is opened."""
    steps: list[Step] = [Rules(network), Forwarding(store, network.name, 4)]
    if network.subnet6:
        steps.append(Forwarding(store, network.name, 6))
    steps.append(Bridge(network))
    if network.limit:
        steps.append(Shaping(network.name, network.limit))
    return [*steps, Dnsmasq(store, network)]


def plan(
    store: Store,
    name: str,
    *,
    subnet: IPv4Network | None = None,
    subnet6: IPv6Network | None = None,
    limit: Rate | None = None,
) -> Network:
    """The network *name* as it would be made, or as it is if it is there and is what is asked for.

    Raises:
        ConfigError: a subnet is taken, a device has the name, or there is another network of that name.
    """
    there = find_network(store, name)
    if there is not None:
        if (subnet or there.subnet, subnet6 or there.subnet6, limit or there.limit) != (
            there.subnet,
            there.subnet6,
            there.limit,
        ):
            raise ConfigError(
                "there is such a network, with other options",
                where=f"network {name}",
                fix=f"see it: pyvmm net show {name}\ntake it away: pyvmm net delete {name}",
            )
        return there
    occupied = taken([other for other in all_networks(store) if other.name != name])
    if subnet:
        refuse_overlap(subnet, occupied, "--subnet")
    if subnet6:
        refuse_overlap(subnet6, occupied, "--ipv6")
    with netlink() as routes:
        if find_device(routes, name) is not None:
            raise ConfigError(f"the host has a device named {name}", where=f"network {name}", fix="choose another name")
    return Network(name=name, mac=make_mac(), subnet=subnet or choose_subnet(occupied), subnet6=subnet6, limit=limit)


def create(
    store: Store,
    name: str,
    *,
    subnet: IPv4Network | None = None,
    subnet6: IPv6Network | None = None,
    limit: Rate | None = None,
) -> Network:
    """Make the network *name*, wholly or not at all; one that is there and is what is asked for is mended.

    Raises:
        ConfigError: as `plan`.
        BackendError: the host refuses a part; all is as before.
    """
    with store.locked():
        _clear(store, name)
        network = plan(store, name, subnet=subnet, subnet6=subnet6, limit=limit)
        steps, goal = network_steps(store, network), f"create network {name}"
        if find_network(store, name) is not None:
            mend(steps, goal)
            return network
        _record(store, network, "creating")
        try:
            apply(steps, goal)
        except BaseException:
            with suppress(BackendError):  # of what the first error already tells
                _clear(store, name)
            raise
        _record(store, network, "ready")
        return network


def delete(store: Store, name: str, *, force: bool = False) -> None:
    """Take the network *name* away, with its guests' taps; *force*: even while guests run on it.

    Raises:
        ConfigError: there is no such network, or guests run on it.
        BackendError: some of it could not be taken away. It stays known, so that another try can be made.
    """
    with store.locked():
        network = find_network(store, name)
        if network is None:
            if not _clear(store, name):
                raise no_network(store, name)
            return
        running = [] if force else ports_in_use(name)
        if running:
            raise ConfigError(
                f"is in use by {', '.join(running)}", where=f"network {name}", fix="end these guests, or use --force"
            )
        _record(store, network, "deleting")
        _clear(store, name)


def repair(store: Store, name: str) -> list[str]:
    """Make the network *name* what it is recorded to be, or finish its deletion; what was done.

    Raises:
        ConfigError: there is no such network.
        BackendError: the host refuses a part.
    """
    with store.locked():
        if _clear(store, name):
            return [f"an end of network {name}, which a crash had left half made or half deleted"]
        network = get_network(store, name)
        goal = f"repair network {name}"
        made = mend(network_steps(store, network), goal)
        dnsmasq = Dnsmasq(store, network)
        if Bridge(network).what in made and dnsmasq.what not in made:
            dnsmasq.do()  # it has the old bridge
        for guest in read_guests(store, name).values():
            made += mend(guest_steps(store, network, guest), goal)
        return made


def missing(store: Store, name: str) -> list[str]:
    """What `repair` would make.

    Raises:
        ConfigError: there is no such network.
    """
    network = get_network(store, name)
    steps = network_steps(store, network)
    for guest in read_guests(store, name).values():
        steps += guest_steps(store, network, guest)
    return [step.what for step in steps if not step.is_done()]


def state(store: Store, network: Network) -> dict[str, bool]:
    """Whether each part of *network* is as it should be."""
    return {step.what: step.is_done() for step in network_steps(store, network)}


def find_network(store: Store, name: str) -> Network | None:
    """The finished network *name*, if there is one."""
    document = store.read(name, _FILE)
    return Network.from_json(document["network"]) if document and document["state"] == "ready" else None


def get_network(store: Store, name: str) -> Network:
    """The finished network *name*.

    Raises:
        ConfigError: there is none.
    """
    network = find_network(store, name)
    if network is None:
        raise no_network(store, name)
    return network


def all_networks(store: Store) -> list[Network]:
    """All networks, unfinished ones too."""
    documents = [store.read(name, _FILE) for name in store.networks()]
    return [Network.from_json(document["network"]) for document in documents if document]


def no_network(store: Store, name: str) -> ConfigError:
    """What to say where there is no network *name*."""
    unfinished = name in store.networks()
    return ConfigError(
        "was interrupted while it was made or deleted" if unfinished else "there is no such network",
        where=f"network {name}",
        fix=f"run: sudo pyvmm net {f'repair {name}' if unfinished else f'create {name} --nat'}",
    )


def ports_in_use(name: str) -> list[str]:
    """The devices on the bridge *name* that something is connected to."""
    with netlink() as routes:
        bridge = find_device(routes, name)
        if bridge is None:
            return []
        ports = [link for link in routes.get_links() if link.get_attr("IFLA_MASTER") == bridge["index"]]
        return [link.get_attr("IFLA_IFNAME") for link in ports if link["flags"] & _LOWER_UP]


def _record(store: Store, network: Network, state_: str) -> None:
    store.write({"state": state_, "network": network.to_json()}, network.name, _FILE)


def _clear(store: Store, name: str) -> bool:
    """Take away what an unfinished creation or deletion of *name* left; whether there was one."""
    document: Any = store.read(name, _FILE)
    if document is None or document["state"] == "ready":
        return False
    network = Network.from_json(document["network"])
    goal = f"delete network {name}"
    for guest in read_guests(store, name).values():
        revert(guest_steps(store, network, guest), goal)
    revert(network_steps(store, network), goal)
    store.forget(name)
    return True
