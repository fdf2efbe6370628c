"""What a lan is to its guests besides a wire: a host at 10.78.0.1 that answers ARP, DHCP and DNS, in every VLAN.

It hangs on a port of the switch as guests do, so each frame is somebody's who may be hostile: what is not understood
is ignored.
"""

from __future__ import annotations

import struct

from vmm.host.lan import dhcp, dns
from vmm.host.lan.leases import SERVER, Leases

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

#: A locally administered address.
MAC = b"\x02pyvmm"
_EVERYBODY = b"\xff" * 6
_HEADER = bytes(12)  # struct virtio_net_hdr
_FRAME_MAX = 1526  # no question is longer
_VLAN, _ARP, _IPV4 = b"\x81\0", b"\x08\x06", b"\x08\0"
#: Ethernet and IPv4, addresses of 6 and 4 bytes; then the operation (RFC 826).
_ARP_HEAD = b"\0\x01\x08\0\x06\x04"
_ARP_REQUEST, _ARP_REPLY = b"\0\x01", b"\0\x02"
#: Version and size, service, length, id, fragment, TTL, protocol, checksum, source, target (RFC 791).
_IP = struct.Struct(">BBHHHBBH4s4s")
_UDP = struct.Struct(">HHHH")
_UDP_PROTOCOL = 17
_FRAGMENT = 0x3FFF  # more of them, or an offset


class Services:
    """The host on the other end of *channel*; *domain* is the lan's name."""

    def __init__(self, channel: socket.socket, domain: str) -> None:
        self.leases = Leases()
        self._channel, self._domain = channel, domain

    def run(self) -> None:
        """Serve until the switch is gone."""
        while message := self._channel.recv(_FRAME_MAX):
            answer = self.answer(message[len(_HEADER) :])
            if answer:
                self._channel.send(_HEADER + answer)

    def answer(self, frame: bytes) -> bytes | None:
        """The frame that answers *frame*, if one does."""
        target, source, rest = frame[:6], frame[6:12], frame[12:]
        if target not in (MAC, _EVERYBODY):
            return None
        tag = rest[:4] if rest.startswith(_VLAN) else b""
        vlan = int.from_bytes(tag[2:], "big") & 0xFFF
        kind, rest = rest[len(tag) :][:2], rest[len(tag) :][2:]
        if kind == _ARP:
            packet = _answer_arp(rest)
        elif kind == _IPV4:
            packet = self._answer_ip(vlan, source, rest)
        else:
            return None
        return packet and source + MAC + tag + kind + packet

    def _answer_ip(self, vlan: int, mac: bytes, packet: bytes) -> bytes | None:
        if len(packet) < _IP.size:
            return None
        version_size, _, length, _, fragment, _, protocol, _, source, target = _IP.unpack_from(packet)
        head = version_size % 16 * 4
        if version_size >> 4 != 4 or head < _IP.size or fragment & _FRAGMENT or protocol != _UDP_PROTOCOL:
            return None
        datagram = packet[head:length]
        if len(datagram) < _UDP.size:
            return None
        from_port, to_port, size, _ = _UDP.unpack_from(datagram)
        payload = datagram[_UDP.size : size]
        if to_port == dhcp.SERVER_PORT:
            reply = dhcp.answer(self.leases, vlan, mac, self._domain, payload)
            return reply and _udp(reply[0], dhcp.SERVER_PORT, dhcp.CLIENT_PORT, reply[1])
        if to_port == dns.PORT and target == SERVER:
            said = dns.answer(self.leases, vlan, self._domain, payload)
            return said and _udp(source, dns.PORT, from_port, said)
        return None


def _answer_arp(packet: bytes) -> bytes | None:
    asked = packet[:8] == _ARP_HEAD + _ARP_REQUEST and packet[24:28] == SERVER
    return _ARP_HEAD + _ARP_REPLY + MAC + SERVER + packet[8:18] if asked else None


def _udp(target: bytes, from_port: int, to_port: int, payload: bytes) -> bytes:
    """An IPv4 packet to *target*; UDP needs no checksum there (RFC 768)."""
    size = _UDP.size + len(payload)
    fields = (0x45, 0, _IP.size + size, 0, 0, 64, _UDP_PROTOCOL)
    checksum = _checksum(_IP.pack(*fields, 0, SERVER, target))
    return _IP.pack(*fields, checksum, SERVER, target) + _UDP.pack(from_port, to_port, size, 0) + payload


def _checksum(head: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f">{len(head) // 2}H", head))
    return ~(total % 0xFFFF) & 0xFFFF
