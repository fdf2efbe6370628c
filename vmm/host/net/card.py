"""A guest's card on a managed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import ConfigError
from vmm.host.net.bridge import create_bridge_tap
from vmm.host.net.guests import read_guests, refuse_others, reserve
from vmm.host.net.network import Nat
from vmm.host.net.networks import get_network
from vmm.host.net.store import Store
from vmm.host.tap import open_tap
from vmm.mac import parse_mac

if TYPE_CHECKING:
    from vmm.host.tap import Tap


def open_card(
    network_name: str, name: str, mtu: int | None, queues: int, *, private: bool = False, owner: int | None = None
) -> tuple[Tap, bytes | None]:
    """A tap on the network for a card: the guest *name*'s, or without a name just one; and the card's address.

    A tap that was not attached before is made for this process alone, and with *private* behind a NAT of its own.
    *mtu* in bytes is the guest's, None the network's. The guest is that of the user with the id *owner*; None: ours.

    Raises:
        ConfigError: there is no such network, *name* cannot be a guest's or is another user's, or *mtu* is too large.
        BackendError: the guest runs already, or the host refuses.
    """
    store = Store()
    network = get_network(store, network_name)
    if not name:
        return create_bridge_tap(network.name, mtu, queues, owner=owner), None
    guest = read_guests(store, network.name).get(name)
    if guest and guest.attached and not private:
        refuse_others(network, guest, owner)
        return open_tap(guest.tap, mtu, queues), parse_mac(guest.mac)
    with store.locked():  # until the tap is there: a second guest of that name sees it then
        guest = reserve(store, network, name, owner)
        if private:
            if not isinstance(network, Nat):
                raise ConfigError("private=yes is for networks behind NAT", where=f"network {network_name}")
            from vmm.host.net.private import GUEST_MAC, open_private

            return open_private(network, guest, mtu, queues), GUEST_MAC
        return create_bridge_tap(network.name, mtu, queues, name=guest.tap, owner=owner), parse_mac(guest.mac)
