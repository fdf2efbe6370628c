"""The control queue of the network device (VIRTIO 1.2 §5.1.6.5): commands parsed, checked and carried out.

A command is u8 class, u8 command, then data; the device answers with one byte.

==================  =======  ====================================================================
class               command  data
==================  =======  ====================================================================
0 RX                0 … 5    u8 on: PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST
1 MAC               0        TABLE_SET: le32 entries, u8[6] each: unicast; the same: multicast
1 MAC               1        ADDR_SET: u8[6]
3 ANNOUNCE          0        ACK
4 MQ                0        VQ_PAIRS_SET: le16 pairs
5 GUEST_OFFLOADS    0        SET: le64 feature bits
==================  =======  ====================================================================
"""

from __future__ import annotations

from vmm.virtio import chain
from vmm.virtio.net_filter import MODES, TABLE_MAX
from vmm.virtio.net_frame import GUEST_OFFLOADS, NetFeature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.net_filter import RxFilter

    class Card(Protocol):
        """What commands work on. The methods tell whether it could be done."""

        def filter_changed(self) -> bool:
            """The filter was changed."""

        def acknowledge_announcement(self) -> bool:
            """The driver has announced itself to its network."""

        def enable_pairs(self, count: int) -> bool:
            """Use the first *count* queue pairs."""

        def set_offloads(self, offloads: int) -> bool:
            """Let frames come with this work undone: bits of `GUEST_OFFLOADS`."""


_RX, _MAC, _ANNOUNCE, _MQ, _GUEST_OFFLOADS = 0, 1, 3, 4, 5
_TABLE_SET, _ADDR_SET = 0, 1
_OK, _ERR = b"\0", b"\1"
#: The mode from which on they need CTRL_RX_EXTRA.
_EXTRA = 2
#: The longest command taken, in bytes: a table of ten thousand addresses.
_COMMAND_MAX = 1 << 16
_ADDRESS_SIZE = 6


class Control:
    """Carries out the driver's commands on *card* and its *rx_filter*, as far as the driver's features allow them."""

    def __init__(self, name: str, features: int, card: Card, rx_filter: RxFilter) -> None:
        self._name, self._features, self._card, self._filter = name, features, card, rx_filter

    def serve(self, active: ActiveDevice, command: DescriptorChain) -> int:
        """Do one command and answer it; how many bytes were written."""
        done = 2 <= command.readable_bytes <= _COMMAND_MAX and self._do(
            chain.gather(command.readable, command.readable_bytes)
        )
        active.tally.count(f"{self._name}.{'commands' if done else 'commands_refused'}")
        if active.trace:
            active.trace(f"{self._name} command of {command.readable_bytes} bytes -> {'ok' if done else 'refused'}")
        return chain.scatter(command.writable, _OK if done else _ERR)

    def _do(self, command: bytes) -> bool:
        kind, number, data = command[0], command[1], command[2:]
        if kind == _RX:
            return self._set_mode(number, data)
        if kind == _MAC and number == _TABLE_SET:
            return self._has(NetFeature.CTRL_RX) and self._set_table(data)
        if kind == _MAC and number == _ADDR_SET:
            return self._has(NetFeature.CTRL_MAC_ADDR) and self._set_address(data)
        if number:
            return False
        if kind == _ANNOUNCE:
            return self._has(NetFeature.GUEST_ANNOUNCE) and not data and self._card.acknowledge_announcement()
        value = int.from_bytes(data, "little")
        if kind == _MQ:
            return self._has(NetFeature.MQ) and len(data) == 2 and self._card.enable_pairs(value)
        if kind == _GUEST_OFFLOADS:
            allowed = self._features & GUEST_OFFLOADS
            return (
                self._has(NetFeature.CTRL_GUEST_OFFLOADS)
                and len(data) == 8
                and not value & ~allowed
                and self._card.set_offloads(value)
            )
        return False

    def _has(self, feature: int) -> bool:
        return bool(self._features & feature)

    def _set_mode(self, number: int, data: bytes) -> bool:
        needed = NetFeature.CTRL_RX if number < _EXTRA else NetFeature.CTRL_RX_EXTRA
        if number >= len(MODES) or not self._has(needed) or data not in (b"\0", b"\1"):
            return False
        setattr(self._filter, MODES[number], data == b"\1")
        return self._card.filter_changed()

    def _set_table(self, data: bytes) -> bool:
        unicast, rest = _addresses(data)
        multicast, rest = _addresses(rest)
        if unicast is None or multicast is None or rest:
            return False
        self._filter.unicast = frozenset(unicast) if len(unicast) <= TABLE_MAX else None
        self._filter.multicast = frozenset(multicast) if len(multicast) <= TABLE_MAX else None
        return self._card.filter_changed()

    def _set_address(self, data: bytes) -> bool:
        if len(data) != _ADDRESS_SIZE:
            return False
        self._filter.address = data
        return self._card.filter_changed()


def _addresses(data: bytes) -> tuple[list[bytes] | None, bytes]:
    """The table at the start of *data* (None if it is not all there), and what comes after it."""
    end = 4 + _ADDRESS_SIZE * int.from_bytes(data[:4], "little")
    if not 4 <= end <= len(data):
        return None, data
    return [data[at : at + _ADDRESS_SIZE] for at in range(4, end, _ADDRESS_SIZE)], data[end:]
