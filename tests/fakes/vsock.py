"""A guest's driver of a socket device, and the host's programs at its other end."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tests.fakes.driver import Buffer, DriverQueue, Rig
from tests.fakes.loop import SteppedLoop
from vmm.host.vsock import VsockGate
from vmm.virtio.vsock import EVENT, RX, TX, VsockDevice
from vmm.virtio.vsock_stream import HEADER, HOST_CID, STREAM, Op

CID = 42
GUEST_PORT = 333
_BUFFER = 4096
_TX_BUFFERS = 8


@dataclass(frozen=True)
class Packet:
    """One that the guest received."""

    source: int
    target: int
    host_port: int
    guest_port: int
    kind: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    data: bytes


class Guest:
    """The guest `CID` behind the Unix socket *path*, with so many *buffers* to receive into."""

    def __init__(self, path: str, *, kind: str = "mmio", buffers: int = 16, start: bool = True) -> None:
        self.path = path
        self.loop = SteppedLoop()
        self.gate = VsockGate(path)
        self.device = VsockDevice("vsock", self.gate, self.loop, CID)
        self.rig = Rig(self.device, kind=kind, tracing=True, memory_bytes=16 << 20)
        self._buffers = buffers
        self._clients: list[socket.socket] = []
        self.queues: list[DriverQueue] = []
        self.sent = 0
        if start:
            self.start()

    def start(self) -> None:
        """Set the device going, from its reset on."""
        self.queues = self.rig.driver.start()
        self._offered: dict[int, Buffer] = {}
        self._tx_free = [(self.rig.arena.reserve(HEADER.size + (64 << 10))) for _ in range(_TX_BUFFERS)]
        self._tx_used: dict[int, int] = {}
        for _ in range(self._buffers):
            self.offer(_BUFFER)
        self.offer_event()

    # The driver.

    def kick(self, index: int) -> None:
        """Kick a queue, and let all that follows from it happen."""
        self.rig.driver.kick(index)
        self.settle()

    def settle(self) -> None:
        """Let happen what is due."""
        for _ in range(1000):
            self.rig.run_kicks()
            if not self.loop.turn():
                return
        raise AssertionError("the loop spins")

    def offer(self, size: int) -> None:
        """Offer a buffer of *size* bytes to receive into."""
        self._offer(self.rig.arena.writable(size))
        self.kick(RX)

    def _offer(self, buffer: Buffer) -> None:
        self._offered[self.queues[RX].add([buffer])] = buffer

    def offer_event(self) -> None:
        """Offer the buffer for events."""
        self._event = self.rig.arena.writable(4)
        self.queues[EVENT].add([self._event])
        self.kick(EVENT)

    def take_event(self) -> bytes:
        """The event that came; empty if none did."""
        return b"".join(self.rig.arena.content(self._event)[:written] for _, written in self.queues[EVENT].collect())

    def receive(self, *, refill: bool = True) -> list[Packet]:
        """The packets that have come, and that come as buffers are offered anew, which *refill* does."""
        packets = []
        self.settle()
        while used := self.queues[RX].collect():
            for head, written in used:
                buffer = self._offered.pop(head)
                if written:
                    packets.append(_packet(self.rig.arena.content(buffer)[:written]))
                if refill:
                    self._offer(buffer)
            self.kick(RX)
        return packets

    def send(
        self, op: int, host_port: int, guest_port: int, data: bytes = b"", *, flags: int = 0,
        buf_alloc: int = 1 << 16, fwd_cnt: int = 0, source: int = CID, target: int = HOST_CID, kind: int = STREAM,
        size: int | None = None,
    ) -> None:  # fmt: skip
        """Send a packet, right or wrong."""
        length = len(data) if size is None else size
        header = (source, target, guest_port, host_port, length, kind, op, flags, buf_alloc, fwd_cnt)
        self.send_raw(HEADER.pack(*header) + data)

    def send_raw(self, packet: bytes) -> None:
        """Send *packet*; not if the device has not taken those before it."""
        for head, _ in self.queues[TX].collect():
            self._tx_free.append(self._tx_used.pop(head))
        if not self._tx_free:
            return
        gpa = self._tx_free.pop()
        self.rig.memory.write(gpa, packet)
        self._tx_used[self.queues[TX].add([Buffer(gpa, len(packet))])] = gpa
        self.sent += 1
        self.kick(TX)

    # The host.

    def client(self, line: bytes) -> socket.socket:
        """A program of the host that connects and says *line*."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(5)
        client.connect(self.path)
        client.sendall(line)
        self._clients.append(client)
        self.settle()
        return client

    def connected(self, line: bytes = b"CONNECT 5000\n", *, buf_alloc: int = 1 << 16) -> tuple[socket.socket, int]:
        """A program of the host that is connected to the guest's port 5000, and the host's port."""
        client = self.client(line)
        (request,) = self.receive()
        assert request.op == Op.REQUEST
        self.send(Op.RESPONSE, request.host_port, 5000, buf_alloc=buf_alloc)
        assert client.recv(len(f"OK {request.host_port}\n")).startswith(b"OK ")
        return client, request.host_port

    def listener(self, port: int) -> socket.socket:
        """A program of the host that listens at *port*."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{self.path}_{port}")
        listener.listen(256)
        return listener

    def close(self) -> None:
        """Take it apart."""
        for client in self._clients:
            client.close()
        self.rig.close()
        self.gate.close()
        self.loop.close()


def _packet(raw: bytes) -> Packet:
    source, target, host_port, guest_port, size, kind, op, flags, buf_alloc, fwd_cnt = HEADER.unpack_from(raw)
    assert len(raw) == HEADER.size + size
    return Packet(source, target, host_port, guest_port, kind, op, flags, buf_alloc, fwd_cnt, raw[HEADER.size :])
