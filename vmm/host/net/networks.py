"""Managed networks: found, taken away as wholes, and mended. `create` makes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm.errors import BackendError, ConfigError
from vmm.host.net.bridge import Bridge
from vmm.host.net.dnsmasq import Dnsmasq
from vmm.host.net.forwarding import Forwarding
from vmm.host.net.guests import guest_steps, read_guests
from vmm.host.net.link import find_ports, is_connected, netlink
from vmm.host.net.network import Nat
from vmm.host.net.persist import Persistence
from vmm.host.net.physical import Physical, Takeover
from vmm.host.net.record import Network, Record, read_record, write_record
from vmm.host.net.rules import Rules
from vmm.host.net.shaping import Shaping
from vmm.host.net.transaction import apply, mend, revert

if TYPE_CHECKING:
    from vmm.host.net.store import Store
    from vmm.host.net.transaction import Step


def network_steps(store: Store, network: Network) -> list[Step]:
    """What *network* consists of, in the order in which it is made: closed before it is opened."""
    if not isinstance(network, Nat):
        return [Takeover(network), *([Persistence(network)] if network.persist else [])]
    steps: list[Step] = [Rules(network), Forwarding(store, network.name, 4)]
    if network.subnet6:
        steps.append(Forwarding(store, network.name, 6))
    steps.append(Bridge(network))
    if network.limit:
        steps.append(Shaping(network.name, network.limit))
    return [*steps, Dnsmasq(store, network)]


def delete(store: Store, name: str, *, force: bool = False) -> None:
    """Take the network *name* away, with its guests' taps; *force*: even while guests run on it.

    Raises:
        ConfigError: there is no such network, or guests run on it.
        BackendError: some of it could not be taken away. It stays known, so that another try can be made.
    """
    with store.locked():
        network = find_network(store, name)
        if network is None:
            if not clear(store, name):
                raise no_network(store, name)
            return
        running = [] if force else ports_in_use(network)
        if running:
            raise ConfigError(
                f"is in use by {', '.join(running)}", where=f"network {name}", fix="end these guests, or use --force"
            )
        _take_away(store, name)


def repair(store: Store, name: str) -> list[str]:
    """Make the network *name* what it is recorded to be, or finish its deletion; what was done.

    Raises:
        ConfigError: there is no such network.
        BackendError: the host refuses a part.
    """
    with store.locked():
        if clear(store, name):
            return [f"an end of network {name}, which a crash had left half made or half deleted"]
        record = _finished(store, name)
        network = record.network
        if isinstance(network, Physical):
            network = Takeover(network).renewed()
            write_record(store, replace(record, network=network))
        return mend_all(store, network, f"repair network {name}")


def mend_all(store: Store, network: Network, goal: str) -> list[str]:
    """Make what is missing of *network* and its guests; what was made. The lock is held, *goal* is for messages.

    Raises:
        BackendError: the host refuses a part.
    """
    made = mend(network_steps(store, network), goal)
    if isinstance(network, Nat):
        dnsmasq = Dnsmasq(store, network)
        if Bridge(network).what in made and dnsmasq.what not in made:
            dnsmasq.do()  # it has the old bridge
    for guest in read_guests(store, network.name).values():
        made += mend(guest_steps(store, network, guest), goal)
    return made


def all_steps(store: Store, network: Network) -> list[Step]:
    """What *network* and its guests consist of."""
    steps = network_steps(store, network)
    for guest in read_guests(store, network.name).values():
        steps += guest_steps(store, network, guest)
    return steps


def missing(store: Store, name: str) -> list[str]:
    """What `repair` would make.

    Raises:
        ConfigError: there is no such network.
        BackendError: only root may know.
    """
    try:
        return [step.what for step in all_steps(store, get_network(store, name)) if not step.is_done()]
    except PermissionError as error:
        raise BackendError("cannot see all of it", where=f"network {name}", fix="run it with sudo") from error


def confirm(store: Store, name: str) -> Network:
    """End the trial of the network *name*: it stays.

    Raises:
        ConfigError: there is no such network.
        BackendError: what shall set it up from now on cannot be written; it is on trial still.
    """
    with store.locked():
        network, steps = plan_confirmed(store, name)
        apply(steps, f"confirm network {name}")
        write_record(store, Record(network, "ready"))
        return network


def plan_confirmed(store: Store, name: str) -> tuple[Network, list[Step]]:
    """The network *name* as it is after its trial, and what is made for that.

    Raises:
        ConfigError: there is no such network.
    """
    record = _finished(store, name)
    network = record.network
    if not (isinstance(network, Physical) and record.persist):
        return network, []
    network = replace(network, persist=record.persist)
    return network, [Persistence(network)]


def is_on_trial(store: Store, name: str, token: str) -> bool:
    """Whether something of the network *name* may be there on the trial *token*."""
    record = read_record(store, name)
    return record is not None and record.token == token


def take_back(store: Store, name: str, token: str) -> None:
    """Take the network *name* away if nobody has confirmed the trial *token*."""
    with store.locked():
        if not is_on_trial(store, name, token):
            return
        _take_away(store, name)


def find_network(store: Store, name: str) -> Network | None:
    """The finished network *name*, if there is one."""
    record = read_record(store, name)
    return record.network if record and record.is_finished else None


def get_network(store: Store, name: str) -> Network:
    """The finished network *name*.

    Raises:
        ConfigError: there is none.
    """
    return _finished(store, name).network


def all_networks(store: Store) -> list[Network]:
    """All networks, unfinished ones too."""
    records = [read_record(store, name) for name in store.networks()]
    return [record.network for record in records if record]


def no_network(store: Store, name: str) -> ConfigError:
    """What to say where there is no network *name*."""
    unfinished = name in store.networks()
    return ConfigError(
        "was interrupted while it was made or deleted" if unfinished else "there is no such network",
        where=f"network {name}",
        fix=f"run: sudo pyvmm net {f'repair {name}' if unfinished else f'create {name} --nat'}",
    )


def _finished(store: Store, name: str) -> Record:
    record = read_record(store, name)
    if record is None or not record.is_finished:
        raise no_network(store, name)
    return record


def ports_in_use(network: Network) -> list[str]:
    """The devices on the bridge of *network* that something is connected to, but for a NIC."""
    with netlink() as routes:
        ports = find_ports(routes, network.name)
    names = [name for name, link in ports.items() if is_connected(link)]
    return [name for name in names if isinstance(network, Nat) or name != network.nic]


def _take_away(store: Store, name: str) -> None:
    """Take the network *name* away, finished or not, whoever uses it."""
    record = read_record(store, name)
    if record is not None and record.is_finished:
        network = record.network if isinstance(record.network, Nat) else Takeover(record.network).present()
        write_record(store, replace(record, network=network, state="deleting"))
    clear(store, name)


def clear(store: Store, name: str) -> bool:
    """Take away what an unfinished creation or deletion of *name* left; whether there was one. The lock is held."""
    record = read_record(store, name)
    if record is None or record.is_finished:
        return False
    goal = f"delete network {name}"
    if record.state != "deleting":
        write_record(store, replace(record, state="deleting"))
    for guest in read_guests(store, name).values():
        revert(guest_steps(store, record.network, guest), goal)
    network = record.network
    if isinstance(network, Physical) and record.persist:
        network = replace(network, persist=record.persist)  # `confirm` may have been killed after it wrote this
    revert(network_steps(store, network), goal)
    store.forget(name)
    return True
