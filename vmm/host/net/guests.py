"""Guests of a managed network: by its name, each has an address of its own for good, and perhaps a tap.

A guest's Ethernet address follows from the network's name and its own; its tap's name, from that. Its IP address is
chosen once, and recorded. It is told to dnsmasq, and to the host by a line in `/etc/hosts`.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from vmm.config import Rate
from vmm.errors import BackendError, ConfigError
from vmm.host.net.bridge import join_bridge
from vmm.host.net.dnsmasq import Dnsmasq
from vmm.host.net.link import find_device, is_connected, netlink, tap_holder, user_name
from vmm.host.net.network import Nat, check_name
from vmm.host.net.shaping import Policing, Shaping
from vmm.host.net.transaction import apply, mend, revert
from vmm.host.tap import TUNSETOWNER, open_tun
from vmm.host.tap import attach as attach_tap
from vmm.mac import default_mac, format_mac

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.host.net.record import Network
    from vmm.host.net.store import Store
    from vmm.host.net.transaction import Step

_FILE = "guests.json"
#: Of one user on one network, for good: each takes an address, and a line of the host's table of names.
NAMES_MAX = 64
_TUNSETPERSIST = 0x400454CB  # linux/if_tun.h


@dataclass(frozen=True)
class Guest:
    """A guest *name* with its addresses. *attached*: it has a tap that stays, for the user with the id *owner*.

    On a physical network it has no IP address of ours.
    """

    name: str
    mac: str
    address: IPv4Address | None
    attached: bool = False
    owner: int | None = None
    #: Bytes a second, each way.
    limit: Rate | None = None

    @property
    def tap(self) -> str:
        """The name of its tap, whether there is one or not."""
        return f"pyvmm-{self.mac[6:].replace(':', '')}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return vars(self) | {"address": self.address and str(self.address), "limit": self.limit and vars(self.limit)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Guest:
        """The guest that `to_json` made *document* of."""
        limit = Rate(**document["limit"]) if document["limit"] else None
        address = IPv4Address(document["address"]) if document["address"] else None
        return cls(**document | {"address": address, "limit": limit})


class Names:
    """dnsmasq gives *guest* its address and name, and the host knows it by name."""

    def __init__(self, store: Store, network: Nat, guest: Guest) -> None:
        self._store, self._network, self._guest = store, network, guest
        # A user's guest could be called localhost, or as a host that others mean.
        short = "" if guest.owner is not None and not guest.attached else f" {guest.name}"
        self._line = f"{guest.address}\t{guest.name}.{network.name}{short}\t# pyvmm net {network.name}\n"
        #: What dnsmasq is to know, by file.
        self._told = {
            (network.name, "hosts", guest.name): f"{guest.mac},{guest.address},{guest.name}\n",
            (network.name, "names", guest.name): f"{guest.address} {guest.name}.{network.name} {guest.name}\n",
        }
        self.what = f"name {guest.name}.{network.name}"

    def describe(self) -> str:
        guest = self._guest
        return f"dhcp-host={guest.mac},{guest.address},{guest.name}\n{self._store.hosts}: {self._line.strip()}"

    def is_done(self) -> bool:
        return all(os.path.exists(self._store.path(*file)) for file in self._told) and self._line in self._hosts()

    def do(self) -> None:
        for file, text in self._told.items():
            self._store.write_text(text, *file)
        lines = self._hosts()
        if self._line not in lines:
            self._write_hosts([*lines, self._line])

    def undo(self) -> None:
        lines = self._hosts()
        if self._line in lines:
            lines.remove(self._line)
            self._write_hosts(lines)
        for file in self._told:
            self._store.remove(*file)
        Dnsmasq(self._store, self._network).reread()

    def _hosts(self) -> list[str]:
        with open(self._store.hosts, encoding="utf-8", errors="surrogateescape") as file:
            # The last one may lack its end, and ours would become a part of it.
            return [line if line.endswith("\n") else f"{line}\n" for line in file]

    def _write_hosts(self, lines: list[str]) -> None:
        # In place: in a container the file is a mount point, which nothing can be renamed to.
        with open(self._store.hosts, "r+", encoding="utf-8", errors="surrogateescape") as file:
            file.write("".join(lines))
            file.truncate()


class GuestTap:
    """The tap of *guest* is on its network's bridge; if it is to stay, there is one."""

    def __init__(self, network: Network, guest: Guest) -> None:
        self._network, self._guest = network, guest
        self.what = f"tap {guest.tap}"

    def describe(self) -> str:
        guest = self._guest
        user = "" if guest.owner is None else f" user {guest.owner}"
        return (
            f"ip tuntap add dev {guest.tap} mode tap vnet_hdr{user}\n"
            f"ip link set {guest.tap} master {self._network.name} up"
        )

    def is_done(self) -> bool:
        with netlink() as routes:
            tap, bridge = find_device(routes, self._guest.tap), find_device(routes, self._network.name)
        if tap is None:
            return not self._guest.attached
        return bridge is not None and tap.get_attr("IFLA_MASTER") == bridge["index"]

    def do(self) -> None:
        guest = self._guest
        with netlink() as routes:
            there = find_device(routes, guest.tap) is not None
            if guest.attached and not there:
                _make_tap(guest.tap, guest.owner)
            join_bridge(guest.tap, self._network.name, routes)

    def undo(self) -> None:
        with netlink() as routes:
            tap = find_device(routes, self._guest.tap)
            if tap is not None and self._guest.attached:
                routes.link("del", index=tap["index"])


def guest_steps(store: Store, network: Network, guest: Guest) -> list[Step]:
    """What *guest* of *network* has on the host."""
    steps: list[Step] = [GuestTap(network, guest)]
    if isinstance(network, Nat):
        steps.insert(0, Names(store, network, guest))
    if guest.attached and guest.limit:
        steps += [Shaping(guest.tap, guest.limit), Policing(guest.tap, guest.limit)]
    return steps


def read_guests(store: Store, network: str) -> dict[str, Guest]:
    """The guests of *network* by name."""
    return {name: Guest.from_json(document) for name, document in (store.read(network, _FILE) or {}).items()}


def get_guest(store: Store, network: Network, name: str) -> Guest:
    """The guest *name* of *network*.

    Raises:
        ConfigError: there is none.
    """
    try:
        return read_guests(store, network.name)[name]
    except KeyError:
        raise ConfigError(
            f"has no guest {name}", where=f"network {network.name}", fix=f"run: pyvmm net show {network.name}"
        ) from None


def plan_guest(store: Store, network: Network, name: str, **changes: Any) -> Guest:
    """The guest *name* of *network* as it is, or would be, with *changes*.

    Raises:
        ConfigError: it cannot have that name, or the network is full.
    """
    guests = read_guests(store, network.name)
    return replace(guests.get(check_name(name, "guest")) or _new_guest(network, name, guests), **changes)


def attach(store: Store, network: Network, name: str, *, owner: int | None = None, limit: Rate | None = None) -> Guest:
    """Make a tap that stays, for the guest *name* of *network*, run by the user with the id *owner* (None: root).

    Raises:
        ConfigError: as `plan_guest`; or it runs, and more than its limit would change.
        BackendError: the host refuses a part; all is as before.
    """
    with store.locked():
        before = read_guests(store, network.name)
        guest = plan_guest(store, network, name, attached=True, owner=owner, limit=limit)
        same_tap = name in before and replace(before[name], limit=limit) == guest
        if name in before and not same_tap:
            _refuse_running(network, before[name])
        steps, goal = guest_steps(store, network, guest), f"attach {name} to network {network.name}"
        if before.get(name) == guest:
            mend(steps, goal)
            return guest
        _write_guests(store, network, before | {name: guest})
        try:
            if name in before:
                kept = {step.what for step in steps} if same_tap else set()
                revert([step for step in guest_steps(store, network, before[name]) if step.what not in kept], goal)
            apply(steps, goal)
        except BaseException:
            _write_guests(store, network, before)
            if name in before:
                mend(guest_steps(store, network, before[name]), goal)
            raise
        return guest


def detach(store: Store, network: Network, name: str) -> None:
    """Take away the tap of the guest *name*, and forget its addresses.

    Raises:
        ConfigError: there is no such guest, or it runs.
        BackendError: something could not be taken away.
    """
    with store.locked():
        guests = read_guests(store, network.name)
        guest = get_guest(store, network, name)
        _refuse_running(network, guest)
        revert(guest_steps(store, network, guest), f"detach {name} from network {network.name}")
        _write_guests(store, network, {key: other for key, other in guests.items() if key != name})


def reserve(store: Store, network: Network, name: str, owner: int | None = None) -> Guest:
    """The guest *name* of *network*, which is about to run; its addresses are recorded. The lock is held.

    The guest of the user with the id *owner* stays theirs; None: whoever has it is root.

    Raises:
        ConfigError: as `plan_guest`, or it is another user's, or the user has too many.
        BackendError: it runs already, or the host refuses.
    """
    guests = read_guests(store, network.name)
    if name in guests:
        refuse_others(network, guests[name], owner)
        guest = guests[name]
    else:
        if owner is not None and sum(other.owner == owner for other in guests.values()) >= NAMES_MAX:
            raise ConfigError(
                f"{user_name(owner)} has {NAMES_MAX} names already",
                where=f"network {network.name}",
                fix=f"choose one of them, or run: sudo pyvmm net detach {network.name} GUEST",
            )
        guest = plan_guest(store, network, name, owner=owner)
    holder = _runner(guest)
    if holder:
        raise BackendError(
            f"{name} runs already: {holder}", where=f"network {network.name}", fix="end it, or choose another name="
        )
    if name not in guests:
        _write_guests(store, network, guests | {name: guest})
    if isinstance(network, Nat):
        mend([Names(store, network, guest)], f"join {name} to network {network.name}")
    return guest


def next_private(store: Store, network: Network, owner: int | None) -> str:
    """The first of the names ``private1``, ``private2`` … that is free for a guest of the user with the id *owner*."""
    guests = read_guests(store, network.name)
    with netlink() as routes:
        for number in itertools.count(1):
            guest = guests.get(f"private{number}")
            if guest is None or (guest.owner == owner and find_device(routes, guest.tap) is None):
                break
    return f"private{number}"


def refuse_others(network: Network, guest: Guest, owner: int | None) -> None:
    """Raise `ConfigError` unless *guest* is that of the user with the id *owner*, or None: who is asked for is root."""
    if owner is not None and guest.owner != owner:
        raise ConfigError(
            f"{guest.name} is {'root' if guest.owner is None else user_name(guest.owner)}'s",
            where=f"network {network.name}",
            fix=f"choose another name=, or run: sudo pyvmm net detach {network.name} {guest.name}",
        )


def _new_guest(network: Network, name: str, guests: Mapping[str, Guest]) -> Guest:
    """A guest with the addresses that follow from its name, or the next ones that are free."""
    macs = {guest.mac for guest in guests.values()}
    seed = f"{network.name}/{name}"
    while format_mac(default_mac(seed)) in macs:
        seed += "+"
    mac = default_mac(seed)
    if not isinstance(network, Nat):
        return Guest(name=name, mac=format_mac(mac), address=None)
    taken = {guest.address for guest in guests.values()}
    count = network.subnet.num_addresses - 1 - network.middle  # the last is the broadcast address
    start = int.from_bytes(mac[2:], "big")
    for offset in range(count):
        address = network.subnet[network.middle + (start + offset) % count]
        if address not in taken:
            return Guest(name=name, mac=format_mac(mac), address=address)
    raise ConfigError(
        f"all {count} addresses for guests with names are in use",
        where=f"network {network.name}",
        fix=f"run: pyvmm net detach {network.name} GUEST",
    )


def _write_guests(store: Store, network: Network, guests: Mapping[str, Guest]) -> None:
    store.write({name: guest.to_json() for name, guest in guests.items()}, network.name, _FILE)


def _runner(guest: Guest) -> str | None:
    """The process that has the tap of *guest* open."""
    with netlink() as routes:
        tap = find_device(routes, guest.tap)
    if tap is None or not is_connected(tap):
        return None
    return tap_holder(guest.tap) or "another process"


def _refuse_running(network: Network, guest: Guest) -> None:
    """Raise `ConfigError` if *guest* runs."""
    holder = _runner(guest)
    if holder:
        raise ConfigError(f"{guest.name} runs: {holder}", where=f"network {network.name}", fix="end it before")


def _make_tap(name: str, owner: int | None) -> None:
    """A tap that stays; until it is said to, it goes with this process."""
    fd = open_tun()
    try:
        attach_tap(fd, name)
        # A tap that belongs to nobody is everybody's.
        fcntl.ioctl(fd, TUNSETOWNER, os.geteuid() if owner is None else owner)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)
