"""A card joins a network of the host: by its own right, or by the helper's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.errors import BackendError
from vmm.host.net.store import Store, may_administer

if TYPE_CHECKING:
    from vmm.config import NetConfig
    from vmm.host.tap import Tap


def join(net: NetConfig) -> tuple[Tap, bytes | None]:
    """A tap on the network or bridge of *net*, and the card's address where the network gives it one.

    Who may not make taps asks `pyvmm-net-helper`, unless root has attached the guest for them.

    Raises:
        ConfigError, BackendError: as `open_card`, or there is no helper, or it says no.
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

    Raises:
        ConfigError, BackendError: as `open_card` and `create_bridge_tap`.
    """
    if net.network:
        from vmm.host.net.card import open_card

        return open_card(net.network, net.name, net.mtu, net.queues, private=net.private, owner=owner)
    from vmm.host.net.bridge import create_bridge_tap

    return create_bridge_tap(net.bridge, net.mtu, net.queues, owner=owner), None


def _is_attached(net: NetConfig) -> bool:
    """Whether the guest of *net* has a tap that stays."""
    if not net.name or net.private:
        return False
    from vmm.host.net.guests import read_guests

    guest = read_guests(Store(), net.network).get(net.name)
    return guest is not None and guest.attached
