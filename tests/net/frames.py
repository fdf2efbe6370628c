"""Ethernet frames, written and awaited."""

from __future__ import annotations

import select
import struct

from vmm.host.tap import VNET_HEADER_SIZE, Tap
from vmm.host.uplink import Uplink

GUEST_MAC = bytes.fromhex("525400000001")
BROADCAST = b"\xff" * 6
NO_HEADER = bytes(VNET_HEADER_SIZE)
ETHERTYPE_TEST = b"\x88\xb5"  # IEEE 802, local experimental


def arp_request(target: bytes, sender: bytes = b"\x0a\x00\x00\x02", mac: bytes = GUEST_MAC) -> bytes:
    """Who has *target*? Tell *sender*. (RFC 826)"""
    return BROADCAST + mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + mac + sender + bytes(6) + target


def udp_frame(source: bytes, target: bytes, source_port: int, target_port: int, mac: bytes = BROADCAST) -> bytes:
    """An empty UDP datagram between IPv4 addresses, without checksum. (RFC 791, 768)"""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, target)
    total = sum(struct.unpack(">10H", ip))
    checksum = ~(total % 0xFFFF or 0xFFFF) & 0xFFFF
    udp = struct.pack(">HHHH", source_port, target_port, 8, 0)
    return mac + GUEST_MAC + b"\x08\0" + ip[:10] + checksum.to_bytes(2, "big") + ip[12:] + udp


def send(tap: Tap, frame: bytes, header: bytes = NO_HEADER, queue: int = 0) -> bool:
    return tap.queues[queue].writev([memoryview(header), memoryview(frame)])


def await_frame(tap: Tap | Uplink, timeout_s: float = 5.0, queue: int = 0) -> None:
    if not select.select([tap.queues[queue]], [], [], timeout_s)[0]:
        raise TimeoutError(f"no frame on {tap.name}")


def receive(tap: Tap, ethertype: bytes, timeout_s: float = 5.0, queue: int = 0) -> tuple[bytes, bytes]:
    """The header and the frame of the next frame of this type."""
    header, frame = bytearray(VNET_HEADER_SIZE), bytearray(65536)
    while True:
        await_frame(tap, timeout_s, queue)
        size = tap.queues[queue].readv([memoryview(header), memoryview(frame)])
        if size and frame[12:14] == ethertype:
            return bytes(header), bytes(frame[: size - VNET_HEADER_SIZE])
