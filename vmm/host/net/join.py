"""A card joins a network of the host: by its own right, or by the helper's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import BackendError, ConfigError
from vmm.host.net.bridge import create_bridge_tap
from vmm.host.net.create import make_default
from vmm.host.net.guests import next_private, read_guests, refuse_others, reserve
from vmm.host.net.network import DEFAULT, Nat
from vmm.host.net.networks import get_network
from vmm.host.net.private import GUEST_MAC, open_private
from vmm.host.net.store import Store, may_administer
from vmm.host.tap import open_tap
from vmm.mac import parse_mac

if TYPE_CHECKING:
    from vmm.config import NetConfig
    from vmm.host.net.record import Network
    from vmm.host.tap import Tap


def join(net: NetConfig) -> tuple[Tap, bytes | None]:
    """A tap on the network or bridge of *net*, and the card's address where the network gives it one.

    Who may not make taps asks `pyvmm-net-helper`, unless root has attached the guest for them.

    Raises:
        ConfigError, BackendError: as `join_here`, or there is no helper, or it says no.
    """
    if may_administer() or _is_attached(net):
        return join_here(net)
    from vmm.host.net_helper.client import SET_UP, ask, find_helper

    helper = find_helper()
    if helper:
        return ask(helper, net)
    raise BackendError(
        "this needs CAP_NET_ADMIN, or pyvmm-net-helper, which is not set up",
        where=f"network {net.network}" if net.network else f"bridge {net.bridge}",
        fix=f"run pyvmm with sudo, or take --net user, which needs no right, or once {SET_UP}",
    )


def join_here(net: NetConfig, owner: int | None = None) -> tuple[Tap, bytes | None]:
    """As `join`, by our own right, for the user with the id *owner* (None: for ourselves).

    A tap that was not attached before is made for this process alone, and with *private* behind a NAT of its own.

    Raises:
        ConfigError: there is no such network, the guest's name cannot be one or is another user's, or the MTU is larger
            than the network's.
        BackendError: the guest runs already, or the host refuses.
    """
    if net.bridge:
        return create_bridge_tap(net.bridge, net.mtu, net.queues, owner=owner), None
    store = Store()
    if net.network == DEFAULT:
        make_default(store)
    network = get_network(store, net.network)
    if net.private:
        return _join_private(store, network, net, owner), GUEST_MAC
    if not net.name:
        return create_bridge_tap(network.name, net.mtu, net.queues, owner=owner), None
    guest = read_guests(store, network.name).get(net.name)
    if guest and guest.attached:
        refuse_others(network, guest, owner)
        return open_tap(guest.tap, net.mtu, net.queues), parse_mac(guest.mac)
    with store.locked():  # until the tap is there: a second guest of that name sees it then
        guest = reserve(store, network, net.name, owner)
        tap = create_bridge_tap(network.name, net.mtu, net.queues, name=guest.tap, owner=owner)
        return tap, parse_mac(guest.mac)


def _join_private(store: Store, network: Network, net: NetConfig, owner: int | None) -> Tap:
    if not isinstance(network, Nat):
        raise ConfigError("private=yes is for networks behind NAT", where=f"network {network.name}")
    with store.locked():
        guest = reserve(store, network, net.name or next_private(store, network, owner), owner)
        if guest.attached:
            raise ConfigError(
                f"{guest.name} has a tap that stays, and so none behind a NAT of its own",
                where=f"network {network.name}",
                fix=f"choose another name=, or run: sudo pyvmm net detach {network.name} {guest.name}",
            )
        return open_private(network, guest, net.mtu, net.queues)


def _is_attached(net: NetConfig) -> bool:
    """Whether the guest of *net* has a tap that stays."""
    if not net.name or net.private:
        return False
    guest = read_guests(Store(), net.network).get(net.name)
    return guest is not None and guest.attached
