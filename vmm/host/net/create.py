"""Managed networks are made: wholly or not at all, and those that take over a NIC on trial."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from vmm.errors import BackendError, ConfigError
from vmm.host.net.link import find_device, find_link, netlink
from vmm.host.net.network import DEFAULT, Nat, make_mac
from vmm.host.net.networks import all_networks, clear, find_network, mend_all, network_steps
from vmm.host.net.nft import require_nft
from vmm.host.net.physical import Physical, plan_physical
from vmm.host.net.record import Record, boot_id, write_record
from vmm.host.net.subnets import choose_subnet, refuse_overlap, taken
from vmm.host.net.transaction import apply
from vmm.host.net.trial import watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Network, IPv6Network

    from vmm.config import Rate
    from vmm.host.net.store import Store


class NatOptions(TypedDict, total=False):
    """What may be said of a network behind NAT, as in `Nat`; without a subnet a free one is found."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    limit: Rate | None


def plan_nat(store: Store, name: str, **wanted: Unpack[NatOptions]) -> Nat:
    """The network *name* behind NAT as it would be made, or as it is if it is there and is what is *wanted*.

    Raises:
        ConfigError: a subnet is taken, a device has the name, or there is another network of that name.
    """
    there = find_network(store, name)
    if there is not None:
        if not isinstance(there, Nat) or any(value and value != getattr(there, key) for key, value in wanted.items()):
            raise _another(name)
        return there
    subnet, subnet6 = wanted.get("subnet"), wanted.get("subnet6")
    occupied = taken([other for other in all_networks(store) if other.name != name])
    if subnet:
        refuse_overlap(subnet, occupied, "--subnet")
    if subnet6:
        refuse_overlap(subnet6, occupied, "--ipv6")
    with netlink() as routes:
        if find_device(routes, name) is not None:
            raise ConfigError(f"the host has a device named {name}", where=f"network {name}", fix="choose another name")
    return Nat(name, make_mac(), subnet or choose_subnet(occupied), subnet6, wanted.get("limit"))


def create_nat(store: Store, name: str, **wanted: Unpack[NatOptions]) -> Nat:
    """Make the network *name* behind NAT; one that is there and is what is *wanted* is mended.

    Raises:
        ConfigError: as `plan_nat`.
        BackendError: the host refuses a part; all is as before.
    """
    with store.locked():
        clear(store, name)
        network = plan_nat(store, name, **wanted)
        require_nft()  # without it we could not tell later whether there is anything to take away
        if find_network(store, name) is not None:
            mend_all(store, network, f"create network {name}")
        else:
            _make(store, Record(network, "creating"))
            write_record(store, Record(network, "ready"))
        return network


def make_default(store: Store) -> None:
    """Make the network `DEFAULT` where there is none, or none since the host has booted.

    Raises:
        BackendError: as `create_nat`.
    """
    if find_network(store, DEFAULT) is None or find_link(DEFAULT) is None:
        create_nat(store, DEFAULT)


def create_physical(store: Store, name: str, nic: str, *, confirm_timeout_s: float, persist: str = "") -> Physical:
    """Put the bridge *name* in the place of the device *nic*. It is on trial until `networks.confirm`.

    Afterwards routers must answer that did before, and connections must flow. If they do not, or if nobody confirms it
    within *confirm_timeout_s*, all is as before. *persist* is what sets it up from the confirmation on, as
    `Physical.persist`.

    Raises:
        ConfigError: as `plan_physical`, or there is a network of that name.
        BackendError: the host refuses a part, or is cut off by it; all is as before.
    """
    with store.locked():
        clear(store, name)
        if find_network(store, name) is not None:
            raise _another(name)
        network = plan_physical(name, nic)
        record = Record(network, "creating", os.urandom(8).hex(), boot_id(), persist)
        _make(store, record, lambda: watch(store, name, record.token, confirm_timeout_s))
        write_record(store, replace(record, state="trial"))
        return network


def _make(store: Store, record: Record, before: Callable[[], None] = lambda: None) -> None:
    """Record *record*, do what is to be done *before*, and then all steps of its network; or undo them."""
    name = record.network.name
    write_record(store, record)
    try:
        before()
        apply(network_steps(store, record.network), f"create network {name}")
    except BaseException:
        with suppress(BackendError):  # of what the first error already tells
            clear(store, name)
        raise


def _another(name: str) -> ConfigError:
    return ConfigError(
        "there is such a network, with other options",
        where=f"network {name}",
        fix=f"see it: pyvmm net show {name}\ntake it away: pyvmm net delete {name}",
    )
