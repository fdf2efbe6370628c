"""Whether the world is still there after a change: routers answer, and connections flow."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError
from vmm.host.net.link import find_device, netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.host.net.link import Routes

_PATIENCE_S = 10.0
_POLL_S = 0.1
#: How long connections are looked at, at least: one that is idle now may send.
_WATCH_S = 1.0
_NTF_USE = 0x01  # linux/neighbour.h: find it out now
_NUD_NONE, _NUD_VALID = 0x00, 0xDE  # permanent, no ARP, reachable, probe, stale, delay
_ESTABLISHED = 1 << 1  # net/tcp_states.h
_EXT_INFO = 1 << 1  # INET_DIAG_INFO, linux/inet_diag.h


class Reach:
    """What is reached through the device *device* now, by its *gateways* and TCP connections of its *addresses*."""

    def __init__(self, device: str, gateways: Sequence[str], addresses: Iterable[str]) -> None:
        with netlink() as routes:
            self._gateways = [gateway for gateway in gateways if _answers(routes, device, gateway, 1.0)]
        self._addresses = set(addresses)
        self._connections = set(_connections(self._addresses))

    def check(self, device: str) -> None:
        """Wait until all of it is reached through *device*, and for no more than ten seconds.

        Raises:
            BackendError: something is not.
        """
        begin = time.monotonic()
        deadline = begin + _PATIENCE_S
        with netlink() as routes:
            for gateway in self._gateways:
                if not _answers(routes, device, gateway, deadline - time.monotonic()):
                    raise BackendError(f"the router {gateway} does not answer through {device}")
        while self._connections:
            since = time.monotonic() - begin
            silent = [ends for ends, info in _connections(self._addresses).items() if _is_silent(info, since)]
            silent = [ends for ends in silent if ends in self._connections]
            if not silent and since > _WATCH_S:
                return
            if time.monotonic() > deadline:
                (_, port), (address, far_port) = silent[0]
                raise BackendError(f"the connection from port {port} to {address} port {far_port} has stopped")
            time.sleep(_POLL_S)


def _connections(addresses: set[str]) -> dict[tuple[tuple[str, int], tuple[str, int]], Any]:
    """The established TCP connections of *addresses* by their two ends, each with its `struct tcp_info`."""
    from pyroute2 import DiagSocket

    found = {}
    with DiagSocket() as diagnosis:
        diagnosis.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in diagnosis.get_sock_stats(family=family, states=_ESTABLISHED, extensions=_EXT_INFO):
                info = one.get_attr("INET_DIAG_INFO")
                if one["idiag_src"] in addresses and info:
                    ends = ((one["idiag_src"], one["idiag_sport"]), (one["idiag_dst"], one["idiag_dport"]))
                    found[ends] = info
    return found


def _is_silent(info: Any, since_s: float) -> bool:
    """Whether something was sent on a connection, and nothing acknowledged since *since_s* seconds ago."""
    return bool(info["tcpi_unacked"]) and info["tcpi_last_ack_recv"] > 1000 * since_s


def _answers(routes: Routes, device: str, gateway: str, patience_s: float) -> bool:
    """Whether the router *gateway* is found through *device*, by ARP or neighbour discovery, within *patience_s*."""
    index = find_device(routes, device)["index"]
    family = socket.AF_INET if ip_address(gateway).version == 4 else socket.AF_INET6
    deadline = time.monotonic() + patience_s
    while True:
        for neighbour in routes.get_neighbours(family=family, ifindex=index):
            if neighbour.get_attr("NDA_DST") == gateway and neighbour["state"] & _NUD_VALID:
                return True
        if time.monotonic() > deadline:
            return False
        routes.neigh("replace", family=family, dst=gateway, ifindex=index, state=_NUD_NONE, flags=_NTF_USE)
        time.sleep(_POLL_S)
