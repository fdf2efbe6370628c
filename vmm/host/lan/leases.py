"""Who has which address on a lan, and by which name: in each VLAN for itself."""

from __future__ import annotations

import time
from itertools import chain, count
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: The subnet of every lan, 10.78.0.0/16: outside those that managed networks choose by themselves.
PREFIX, NETMASK = bytes((10, 78)), bytes((255, 255, 0, 0))
SERVER = PREFIX + bytes((0, 1))
_FIRST, _HOSTS = 2, 0xFFFF - 2
LEASE_S = 3600
#: What is offered must be asked for so soon.
_OFFER_S = 60
#: Of all VLANs together: a guest that makes up Ethernet addresses gets no more.
LEASES_MAX = 1024


class Lease:
    """An address is *mac*'s until the time *until_s*; *name* is what the guest calls itself."""

    def __init__(self, mac: bytes, name: str, until_s: float) -> None:
        self.mac, self.name, self.until_s = mac, name, until_s


class Leases:
    """The leases of a lan; *clock* gives seconds. All is of one thread, but *names* may be replaced by another one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        #: What their users named the guests with these Ethernet addresses: nobody else is found by such a name.
        self.names: dict[bytes, str] = {}
        self._clock = clock
        #: By VLAN, then by address.
        self._vlans: dict[int, dict[bytes, Lease]] = {}

    def offer(self, vlan: int, mac: bytes, wanted: bytes) -> bytes | None:
        """Keep an address for *mac* for a while: the one that it has, or the *wanted* one, or one that follows from it.

        None: there is no room.
        """
        leases = self._live(vlan)
        own = next((address for address, lease in leases.items() if lease.mac == mac), None)
        if own is not None:
            return own
        if self._is_full() and mac not in self.names:
            return None
        choices = map(_address, count(crc32(mac)))
        address = next(each for each in chain([wanted] if _is_ours(wanted) else [], choices) if each not in leases)
        leases[address] = Lease(mac, "", self._clock() + _OFFER_S)
        return address

    def take(self, vlan: int, mac: bytes, address: bytes, name: str) -> bool:
        """Whether *mac* may have *address* from now on; *name* as `Lease.name`."""
        leases = self._live(vlan)
        lease = leases.get(address)
        if lease is None:
            if not _is_ours(address) or (self._is_full() and mac not in self.names):
                return False
            self.release(vlan, mac)
            lease = leases[address] = Lease(mac, "", 0)
        if lease.mac != mac:
            return False
        lease.name, lease.until_s = name, self._clock() + LEASE_S
        return True

    def release(self, vlan: int, mac: bytes) -> None:
        """*mac* needs its address no more."""
        leases = self._vlans.get(vlan, {})
        for address in [address for address, lease in leases.items() if lease.mac == mac]:
            del leases[address]

    def decline(self, vlan: int, mac: bytes) -> None:
        """Somebody else uses *mac*'s address: nobody gets it for a while.

        Unless there is no room: else a guest with a name could decline all addresses there are.
        """
        if self._is_full():
            self.release(vlan, mac)
        for lease in self._vlans.get(vlan, {}).values():
            if lease.mac == mac:
                lease.mac, lease.name = b"", ""

    def find(self, vlan: int, name: str) -> bytes | None:
        """The address of the guest *name*."""
        return next((address for address, lease in self._live(vlan).items() if self._name(lease) == name), None)

    def name_at(self, vlan: int, address: bytes) -> str:
        """The name of the guest at *address*, or nothing."""
        lease = self._live(vlan).get(address)
        return self._name(lease) if lease else ""

    def _name(self, lease: Lease) -> str:
        names = self.names
        given = names.get(lease.mac)
        return given or ("" if lease.name in names.values() else lease.name)

    def _live(self, vlan: int) -> dict[bytes, Lease]:
        """The leases of *vlan*, without those that are over."""
        leases, now = self._vlans.setdefault(vlan, {}), self._clock()
        for address in [address for address, lease in leases.items() if lease.until_s <= now]:
            del leases[address]
        return leases

    def _is_full(self) -> bool:
        return sum(len(self._live(vlan)) for vlan in self._vlans) >= LEASES_MAX


def _is_ours(address: bytes) -> bool:
    """Whether a guest may have *address*."""
    return (
        len(address) == 4 and address.startswith(PREFIX) and 0 <= int.from_bytes(address[2:], "big") - _FIRST < _HOSTS
    )


def _address(number: int) -> bytes:
    return PREFIX + (_FIRST + number % _HOSTS).to_bytes(2, "big")
