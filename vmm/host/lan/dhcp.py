"""DHCP (RFC 2131, 2132) as far as guests of a lan need it: an address, a name server and a name, and no router.

What a guest says counts for its own Ethernet address only. A guest whose lease the switch does not know, as that was
started anew, keeps its address.
"""

from __future__ import annotations

import struct

from vmm.host.lan.leases import LEASE_S, NETMASK, SERVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.lan.leases import Leases

SERVER_PORT, CLIENT_PORT = 67, 68
#: op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr; then sname, file and the cookie.
_HEAD = struct.Struct(">BBBB4sHH4s4s4s4s16s")
_COOKIE = b"\x63\x82\x53\x63"
_OPTIONS_AT = _HEAD.size + 64 + 128 + 4
_SIZE_MIN = 300  # what BOOTP's relays and clients expect
_REQUEST, _REPLY, _ETHERNET = 1, 2, 1
_BROADCAST_FLAG = 0x8000
_NOBODY, _EVERYBODY = bytes(4), b"\xff" * 4

PAD, END = 0, 255
NETMASK_OPTION, DNS_OPTION, NAME_OPTION, DOMAIN_OPTION = 1, 6, 12, 15
ADDRESS_OPTION, LEASE_OPTION, TYPE_OPTION, SERVER_OPTION = 50, 51, 53, 54
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)


def answer(leases: Leases, vlan: int, mac: bytes, domain: str, message: bytes) -> tuple[bytes, bytes] | None:
    """The IPv4 address to answer to, and the answer to *message*, which *mac* has sent; None: there is none."""
    if len(message) < _OPTIONS_AT or message[_OPTIONS_AT - 4 : _OPTIONS_AT] != _COOKIE:
        return None
    op, htype, hlen, _, xid, _, flags, current, _, _, _, chaddr = _HEAD.unpack_from(message)
    if (op, htype, hlen, chaddr[:6]) != (_REQUEST, _ETHERNET, 6, mac):
        return None
    options = read_options(message[_OPTIONS_AT:])
    if options.get(SERVER_OPTION, SERVER) != SERVER:
        return None  # it has chosen another server
    wanted = current if current != _NOBODY else options.get(ADDRESS_OPTION, b"")
    kind, given = _decide(leases, vlan, mac, wanted, options)
    if not kind:
        return None
    told: dict[int, bytes] = {TYPE_OPTION: bytes([kind]), SERVER_OPTION: SERVER}
    if kind != NAK:
        told |= {NETMASK_OPTION: NETMASK, DNS_OPTION: SERVER, DOMAIN_OPTION: domain.encode()}
        if given != _NOBODY:
            told[LEASE_OPTION] = LEASE_S.to_bytes(4, "big")
        name = leases.names.get(mac)  # once: another thread may replace them meanwhile
        if name:
            told[NAME_OPTION] = name.encode()
    head = _HEAD.pack(_REPLY, _ETHERNET, 6, 0, xid, 0, flags, current, given, _NOBODY, _NOBODY, chaddr)
    reply = head + bytes(64 + 128) + _COOKIE + write_options(told)
    target = current if current != _NOBODY else given
    if kind == NAK or target == _NOBODY or (flags & _BROADCAST_FLAG and current == _NOBODY):
        target = _EVERYBODY
    return target, reply.ljust(_SIZE_MIN, b"\0")


def _decide(leases: Leases, vlan: int, mac: bytes, wanted: bytes, options: dict[int, bytes]) -> tuple[int, bytes]:
    """The kind of the answer, or 0, and the address that is given."""
    kind = options.get(TYPE_OPTION, b"")
    if kind == bytes([DISCOVER]):
        offered = leases.offer(vlan, mac, wanted)
        return (OFFER, offered) if offered else (0, _NOBODY)
    if kind == bytes([REQUEST]):
        if leases.take(vlan, mac, wanted, host_name(options.get(NAME_OPTION, b""))):
            return ACK, wanted
        return NAK, _NOBODY
    if kind == bytes([INFORM]):
        return ACK, _NOBODY
    if kind == bytes([RELEASE]):
        leases.release(vlan, mac)
    elif kind == bytes([DECLINE]):
        leases.decline(vlan, mac)
    return 0, _NOBODY


def host_name(said: bytes) -> str:
    """The host name that a guest *said* it has; nothing if it is none (RFC 1123 §2.1)."""
    name = said.rstrip(b"\0").decode("latin-1").lower()
    is_one = name.isascii() and name.replace("-", "a").isalnum() and len(name) <= 63 and "-" not in (name[0], name[-1])
    return name if is_one else ""


def read_options(data: bytes) -> dict[int, bytes]:
    """The options in *data*, up to the end or to what is cut off; of equal ones the last."""
    options, at = {}, 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            break
        options[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return options


def write_options(options: dict[int, bytes]) -> bytes:
    """*options* as in a message."""
    return b"".join(bytes([code, len(data)]) + data for code, data in options.items()) + bytes([END])
