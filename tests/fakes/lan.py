"""The switch of a lan in the test's own process, one turn at a time."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from vmm.native._engine import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.native._engine import CData

HEADER = bytes(12)
BROADCAST = b"\xff" * 6
TYPE = b"\x88\xb5"
SECOND_NS = 10**9


def mac(number: int) -> bytes:
    """An Ethernet address."""
    return b"\x52\x54\0\0" + number.to_bytes(2, "big")


def tag(vlan: int) -> bytes:
    """IEEE 802.1Q."""
    return b"\x81\0" + vlan.to_bytes(2, "big")


def frame(to: bytes, sender: bytes, body: bytes = bytes(46), *, tagged: bytes = b"") -> bytes:
    """A frame without header."""
    return to + sender + tagged + TYPE + body


class Port:
    """The guest's end of a port."""

    def __init__(self, lan: Lan, number: int, channel: socket.socket) -> None:
        self._lan, self.number, self.channel = lan, number, channel

    def send(self, *frames: bytes, header: bytes = HEADER) -> Self:
        """Send them, and let the switch have its turns."""
        for each in frames:
            self.channel.send(header + each)
        self._lan.settle()
        return self

    def received(self) -> list[bytes]:
        """What has come since the last call, with headers."""
        frames = []
        while True:
            try:
                frames.append(self.channel.recv(1 << 17))
            except BlockingIOError:
                return frames
            if not frames[-1]:
                raise EOFError

    def got(self) -> list[bytes]:
        """The same without headers, which are empty."""
        frames = self.received()
        assert all(each[:12] == HEADER for each in frames)
        return [each[12:] for each in frames]


class Lan:
    """A switch."""

    def __init__(self, lan: CData) -> None:
        self._lan = lan
        self._ends: list[socket.socket] = []

    def join(self, vlan: int = 0, pcap_fd: int = -1, number: int = -1) -> Port:
        """A new port."""
        outside, inside = self._ends_of_port()
        joined = lib.lan_join(self._lan, inside.detach(), number, vlan or lib.LAN_NATIVE, pcap_fd)
        assert joined >= 0
        return Port(self, joined, outside)

    def serve(self) -> Port:
        """The switch's own port."""
        outside, inside = self._ends_of_port()
        assert lib.lan_serve(self._lan, inside.detach()) == 0
        return Port(self, -1, outside)

    def has(self, port: Port) -> bool:
        """Whether *port* has not left."""
        return lib.lan_has(self._lan, port.number)

    def _ends_of_port(self) -> tuple[socket.socket, socket.socket]:
        outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outside.setblocking(False)
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._ends.append(outside)
        return outside, inside

    def turn(self) -> int:
        """One turn."""
        return lib.lan_turn(self._lan, 0)

    def settle(self) -> None:
        """As many turns as any test's frames need."""
        for _ in range(40):
            self.turn()

    def close(self) -> None:
        for end in self._ends:
            end.close()


@contextmanager
def switch(**limits: int) -> Iterator[Lan]:
    """A switch with these `struct lan_limits`; without any, generous ones."""
    generous = {"age_ns": 300 * SECOND_NS, "addresses": 256, "floods": 0, "floods_burst": 0}
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind("")  # any abstract address
        listener.listen()
        handle = lib.lan_open(listener.fileno(), ffi.new("struct lan_limits *", generous | limits))
        lan = Lan(handle)
        try:
            yield lan
        finally:
            lan.close()
            lib.lan_close(handle)


def records(pcap: bytes) -> list[bytes]:
    """The frames in a recording without its header."""
    frames = []
    while pcap:
        _, nanoseconds, captured, length = struct.unpack_from("=IIII", pcap)
        assert nanoseconds < SECOND_NS
        assert captured == length
        frames.append(pcap[16 : 16 + captured])
        pcap = pcap[16 + captured :]
    return frames
