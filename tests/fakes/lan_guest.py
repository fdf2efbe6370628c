"""A guest's side of ARP, DHCP and DNS on a lan: frames made and read by hand."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from tests.fakes.lan import BROADCAST
from vmm.host.lan.services import MAC

if TYPE_CHECKING:
    from collections.abc import Callable

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
A, PTR, AAAA = 1, 12, 28
SERVER = "10.78.0.1"
#: RFC 2131 §3: what the options begin with.
COOKIE = b"\x63\x82\x53\x63"


def ipv4(source: str, target: str, payload: bytes, protocol: int = 17) -> bytes:
    """A packet (RFC 791); nobody here looks at its checksum."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + ends + payload


def udp(ports: tuple[int, int], payload: bytes) -> bytes:
    """A datagram (RFC 768)."""
    return struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


def checksum(data: bytes) -> int:
    """Zero over a header whose checksum is right (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return ~(total % 0xFFFF or 0xFFFF) & 0xFFFF


class LanGuest:
    """The guest *mac*, that puts frames to *ask*; in the VLAN *vlan* by tags, if that is not 0."""

    def __init__(self, ask: Callable[[bytes], bytes | None], mac: bytes, vlan: int = 0) -> None:
        self._ask, self.mac = ask, mac
        self._tag = b"\x81\0" + vlan.to_bytes(2, "big") if vlan else b""
        self.address = "0.0.0.0"

    def ask(self, kind: bytes, packet: bytes, to: bytes = BROADCAST) -> bytes | None:
        """What answers *packet*, which came to this guest."""
        answer = self._ask(to + self.mac + self._tag + kind + packet)
        if not answer:
            return None
        head = self.mac + MAC + self._tag + kind
        assert answer.startswith(head)
        return answer[len(head) :]

    def ask_udp(self, source: str, target: str, ports: tuple[int, int], payload: bytes) -> tuple[str, bytes] | None:
        """To whom the answer is, and what it says."""
        packet = self.ask(b"\x08\0", ipv4(source, target, udp(ports, payload)))
        if packet is None:
            return None
        assert checksum(packet[:20]) == 0
        assert packet[0] == 0x45
        assert packet[2:4] == len(packet).to_bytes(2, "big")
        assert socket.inet_ntoa(packet[12:16]) == SERVER
        assert struct.unpack_from(">HHHH", packet, 20) == (ports[1], ports[0], len(packet) - 20, 0)
        return socket.inet_ntoa(packet[16:20]), packet[28:]

    def dhcp(
        self,
        kind: int,
        *,
        current: str = "0.0.0.0",
        flags: int = 0,
        **more: bytes,
    ) -> tuple[str, str, dict[int, bytes]] | None:
        """The IP address that is answered to, the one that is given, and the answer's options; *more* are `o50=…`."""
        head = struct.pack(">BBBB4sHH4s12s16s", 1, 1, 6, 0, b"abcd", 0, flags, socket.inet_aton(current), b"", self.mac)
        options = b"".join(bytes([int(name[1:]), len(data)]) + data for name, data in more.items())
        message = head + bytes(192) + COOKIE + bytes([53, 1, kind]) + options + b"\xff"
        said = self.ask_udp(current, "255.255.255.255", (68, 67), message)
        if said is None:
            return None
        target, answer = said
        assert answer[:8] == b"\x02\x01\x06\x00abcd"
        assert len(answer) >= 300
        assert answer[28:34] == self.mac
        told, rest = {}, answer.split(COOKIE, 1)[1]
        while rest[0] != 255:
            told[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        return target, socket.inet_ntoa(answer[16:20]), told

    def get_address(self, name: bytes = b"") -> str:
        """By DISCOVER and REQUEST; it says that it is called *name*."""
        offer = self.dhcp(DISCOVER)
        assert offer
        assert offer[2][53] == bytes([OFFER])
        wanted = socket.inet_aton(offer[1])
        granted = self.dhcp(REQUEST, o50=wanted, o54=offer[2][54], o12=name)
        assert granted
        assert granted[1:2] == offer[1:2]
        assert granted[2][53] == bytes([ACK])
        self.address = granted[1]
        return self.address

    def resolve(self, name: str, kind: int = A) -> tuple[int, list[bytes]]:
        """The code of the answer (RFC 1035 §4.1.1), and the data of its records."""
        query = b"\x12\x34\x01\0\0\x01" + bytes(6) + question(name, kind)
        said = self.ask_udp(self.address, SERVER, (5000, 53), query)
        assert said
        target, answer = said
        assert target == self.address
        assert answer[:2] == b"\x12\x34"
        assert answer[12:].startswith(question(name, kind))
        records, rest = [], answer[12 + len(question(name, kind)) :]
        while rest:
            pointer, *fixed, size = struct.unpack_from(">HHHIH", rest)
            assert (pointer, *fixed[:2]) == (0xC00C, kind, 1)
            records.append(rest[12 : 12 + size])
            rest = rest[12 + size :]
        assert len(records) == int.from_bytes(answer[6:8], "big")
        return answer[3] & 0xF, records


def question(name: str, kind: int) -> bytes:
    """About *name* in the Internet (RFC 1035 §4.1.2)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return labels + b"\0" + struct.pack(">HH", kind, 1)
