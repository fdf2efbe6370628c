"""Which received frames a driver wants, by their destination (VIRTIO 1.2 §5.1.6.5.1, §5.1.6.5.2)."""

from __future__ import annotations

from vmm.state import attributes, put_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.state import State

_ADDRESS = "address"
#: In the order of their commands (VIRTIO 1.2 §5.1.6.5.1).
MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
#: Addresses kept of each kind; a driver that names more gets all frames of that kind.
TABLE_MAX = 64
_BROADCAST = b"\xff" * 6


class RxFilter:
    """The receive modes and the table of addresses. Without `CTRL_RX` a driver gets everything."""

    __slots__ = ("address", "all_multicast", "all_unicast", "multicast", "no_broadcast", "no_multicast", "no_unicast",
                 "promiscuous", "unicast")  # fmt: skip

    def __init__(self, address: bytes, *, promiscuous: bool) -> None:
        #: The card's own address.
        self.address = address
        self.promiscuous = promiscuous
        self.all_multicast = self.all_unicast = False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        #: More addresses to receive for; None: there were too many, so all.
        self.unicast: frozenset[bytes] | None = frozenset()
        self.multicast: frozenset[bytes] | None = frozenset()

    def state(self) -> State:
        """All of it."""
        tables = (self.unicast, self.multicast)
        return attributes(self, (_ADDRESS, *MODES)) | {
            "tables": [None if table is None else sorted(table) for table in tables]
        }

    def restore(self, state: State) -> None:
        """Undo `state`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        put_back(self, (_ADDRESS, *MODES), state)
        tables = [None if table is None else frozenset(map(bytes, table)) for table in state["tables"]]
        if any(len(table) > TABLE_MAX or any(len(address) != 6 for address in table) for table in tables if table):
            raise ValueError("no tables of addresses")
        self.unicast, self.multicast = tables

    def passes(self, destination: bytes) -> bool:
        """Whether the driver wants frames for *destination*, six bytes."""
        if self.promiscuous:
            return True
        if destination == _BROADCAST:
            return not self.no_broadcast
        if destination[0] & 1:
            if self.all_multicast or self.multicast is None:
                return not self.no_multicast
            return not self.no_multicast and destination in self.multicast
        if self.all_unicast or self.unicast is None:
            return not self.no_unicast
        return not self.no_unicast and (destination == self.address or destination in self.unicast)
