"""virtio socket device (VIRTIO 1.2 §5.10): streams between programs of the guest and Unix sockets of the host.

=======  =====  =====================================================
offset   size   configuration space (§5.10.4)
=======  =====  =====================================================
0x00     le64   guest_cid
=======  =====  =====================================================

Nothing grows without bound: at most `STREAMS_MAX` connections, each with a buffer of a size that the guest is told
(`vsock_stream`), and `RESETS_MAX` refusals; while those wait for buffers, nothing more is taken from the guest.
"""

from __future__ import annotations

import os
import select
import struct
from collections import deque

from vmm.host.vsock import read_port
from vmm.virtio import chain
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId
from vmm.virtio.vsock_stream import HEADER, HOST_CID, RECEIVE, SEND, STREAM, Op, Stream, reset_packet

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from vmm.eventloop import EventLoop
    from vmm.host.vsock import VsockGate
    from vmm.state import State
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice

RX, TX, EVENT = 0, 1, 2
#: Linux fills the receive queue with buffers of 4 KiB when it starts; one event tells all that there is to tell.
QUEUE_SIZES = (32, 32, 1)
STREAMS_MAX = 128
RESETS_MAX = 64
#: Ports of the host's side of connections that the host makes: from here on, out of the way of those that programs
#: listen at.
_FIRST_HOST_PORT = 1 << 30
_HOST_PORTS = 0xFFFF_FFFF - _FIRST_HOST_PORT  # the last one means "any"
_TRANSPORT_RESET = struct.pack("<I", 0)
_ONCE = select.EPOLLONESHOT
#: Until a client is let in again after none could be.
_AGAIN_S = 0.1


class VsockFeature:
    """Feature bits (VIRTIO 1.2 §5.10.3)."""

    STREAM = 1 << 0


class VsockDevice(VirtioDevice):
    """The guest with the number *cid*, whose sockets are reached through *gate*.

    A client of *gate* waits until the guest's driver is there. Connections end with the machine, and with the driver;
    but if there are only fresh ones, that the host has made and nothing was sent on, a restored guest has them still,
    and they are for the next clients that ask for their ports.
    """

    device_id = DeviceId.VSOCK
    queue_sizes = QUEUE_SIZES
    features = VsockFeature.STREAM

    def __init__(self, name: str, gate: VsockGate, loop: EventLoop, cid: int) -> None:
        super().__init__(name)
        self._gate, self._loop, self._cid = gate, loop, cid
        self.config += struct.pack("<Q", cid)
        self._active: ActiveDevice | None = None
        self._epoll: select.epoll | None = None  # of all the host's sockets; itself watched by the loop
        self._clients: dict[int, socket.socket] = {}  # which have not said yet where to, by descriptor
        self._streams: dict[tuple[int, int], Stream] = {}  # by the host's and the guest's port
        self._by_fd: dict[int, Stream] = {}  # those, and the ones whose last bytes the host has yet to take
        self._ready: dict[Stream, None] = {}  # may have a packet for the guest; in turn
        self._resets: deque[bytes] = deque()  # packets
        self._spare: dict[tuple[int, int], tuple[int, int]] = {}  # the guest's credit for fresh ones of another life
        # Not from the first on: a guest that was restored may still hold sockets that were connected to those.
        self._next_port = int.from_bytes(os.urandom(4), "little") % _HOST_PORTS
        self._tx_stalled = False
        # After a restore: the event is to be sent; it is sent, and the driver has not given its buffer back yet.
        self._event_owed = self._event_unread = False

    # State.

    def state(self) -> State:
        """As `VirtioDevice.state`; connections end with the life in which they were made, unless all are fresh."""
        streams = self._streams.items()
        fresh = {key: stream.guest_credit for key, stream in streams if stream.is_fresh and key[0] >= _FIRST_HOST_PORT}
        knows_others = len(fresh) < len(streams) or self._resets or self._event_owed or self._event_unread
        spare = [] if knows_others else [[*key, *credit] for key, credit in (self._spare | fresh).items()]
        return {"cid": self._cid, "connected": bool(knows_others), "spare": spare}

    def restore(self, state: State) -> None:
        """As `VirtioDevice.restore`: the driver, if it knows connections of another life, is told that they are gone.

        It looks up its CID again then.
        """
        self._event_owed = state["connected"] or state["cid"] != self._cid
        if not self._event_owed:
            self._spare = {(host, guest): (alloc, passed_on) for host, guest, alloc, passed_on in state["spare"]}
        self._rouse(EVENT)

    # The driver's life.

    def activate(self, active: ActiveDevice) -> None:
        """The driver is ready: let clients in."""
        self._active = active
        self._epoll = select.epoll()
        self._epoll.register(self._gate, select.EPOLLIN)
        self._loop.watch(self._epoll.fileno(), active.guarded(self._on_host), active.lock)

    def reset(self) -> None:
        """End all connections."""
        self._active = None
        if self._epoll is not None:
            self._loop.unwatch(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        for client in self._clients.values():
            client.close()
        for stream in self._by_fd.values():
            stream.peer.close()
        self._clients.clear()
        self._streams.clear()
        self._by_fd.clear()
        self._ready.clear()
        self._resets.clear()
        self._spare.clear()
        self._tx_stalled = self._event_owed = self._event_unread = False

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Take what the guest sends, and give it what waits for it."""
        if index == EVENT:
            self._serve_event(active)
        elif index == TX:
            active.serve(TX, self._take, self._may_take)
        # A connection made before the driver has read the event would end by it.
        if not self._event_unread:
            active.serve(RX, self._fill, lambda: bool(self._ready or self._resets))
        if self._tx_stalled and self._may_take():
            self._tx_stalled = False
            self._rouse(TX)

    def _rouse(self, index: int) -> None:
        """Have queue *index* served on the loop's next turn, as if it had been kicked."""
        if self._active is not None:
            os.eventfd_write(self._active.kick_fds[index], 1)

    def _serve_event(self, active: ActiveDevice) -> None:
        queue = active.queues[EVENT]
        if self._event_owed:
            active.serve(EVENT, self._tell)
        elif self._event_unread and queue is not None and queue.pop() is not None:
            queue.unpop()
            self._event_unread = False

    def _tell(self, _active: ActiveDevice, event: DescriptorChain) -> int:
        self._event_owed, self._event_unread = False, True
        return chain.scatter(event.writable, _TRANSPORT_RESET)

    # From the guest.

    def _may_take(self) -> bool:
        self._tx_stalled = len(self._resets) >= RESETS_MAX
        return not self._tx_stalled

    def _take(self, active: ActiveDevice, packet: DescriptorChain) -> int:
        if packet.readable_bytes < HEADER.size:
            active.tally.count(f"{self.name}.malformed")
            return 0
        head, data = chain.split(packet.readable, HEADER.size)
        source, target, guest_port, host_port, size, kind, op, flags, buf_alloc, fwd_cnt = HEADER.unpack(b"".join(head))
        if active.trace:
            active.trace(f"{self.name} {guest_port} -> {host_port} op {op} +{size:#x}")
        if source != self._cid:
            active.tally.count(f"{self.name}.malformed")
            return 0
        key = (host_port, guest_port)
        stream = self._streams.get(key)
        if target != HOST_CID or kind != STREAM:
            if op != Op.RST:
                self._resets.append(reset_packet(self._cid, *key, host_cid=target, kind=kind))
        elif size > packet.readable_bytes - HEADER.size:
            self._refuse(key, op)
        elif op == Op.REQUEST:
            self._connect(key, buf_alloc, fwd_cnt)
        elif key in self._spare and op == Op.CREDIT_UPDATE:
            self._spare[key] = buf_alloc, fwd_cnt
        elif stream is None:
            self._spare.pop(key, None)
            self._refuse(key, op)
        else:
            stream.learn(buf_alloc, fwd_cnt)
            if not self._obey(stream, op, flags, chain.split(data, size)[0], size):
                self._refuse(key, op)
                return 0
            active.tally.count(f"{self.name}.bytes_out", size)
            if stream.owed or stream.readable:
                self._ready[stream] = None
        return 0

    def _obey(self, stream: Stream, op: int, flags: int, data: list[memoryview], size: int) -> bool:
        """Do for *stream* what its packet says; False: that is against the rules, or the end."""
        if op == Op.RESPONSE:
            return not stream.open and Op.REQUEST not in stream.owed and stream.establish()
        if op == Op.RW:
            if not stream.open or stream.guest_shutdown & SEND or not stream.take(data, size):
                return False
            if stream.waiting:
                self._wait(stream)
        elif op == Op.SHUTDOWN:
            stream.guest_shutdown |= flags
            if stream.guest_shutdown & SEND and stream.guest_shutdown & RECEIVE:
                return False
            self._shut_down(stream)
        elif op == Op.CREDIT_REQUEST:
            stream.owed.add(Op.CREDIT_UPDATE)
        elif op != Op.CREDIT_UPDATE:
            return False
        return True

    def _connect(self, key: tuple[int, int], buf_alloc: int, fwd_cnt: int) -> None:
        """The guest wants a connection."""
        peer = None if key in self._streams or self._is_full() else self._gate.connect(key[0])
        if peer is None:
            self._refuse(key, Op.REQUEST)
            return
        stream = self._add(Stream(peer, *key))
        stream.learn(buf_alloc, fwd_cnt)
        stream.open = stream.readable = True
        stream.owed.add(Op.RESPONSE)
        self._ready[stream] = None

    def _refuse(self, key: tuple[int, int], op: int) -> None:
        """End the connection *key*, if there is one, and tell the guest, unless it has ended it or not heard of it."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            told = Op.REQUEST not in stream.owed
            self._ready.pop(stream, None)
            stream.owed.clear()
            stream.readable, stream.ended = False, True
            if stream.waiting:
                self._wait(stream)
            else:
                self._forget(stream)
            if not told:
                return
        if op != Op.RST:
            self._resets.append(reset_packet(self._cid, *key))

    # From the host.

    def _on_host(self) -> None:
        """Some of the host's sockets are ready."""
        active, epoll = self._active, self._epoll
        if active is None or epoll is None:
            return
        for fd, events in epoll.poll(0):
            if fd == self._gate.fileno():
                self._accept(active, epoll)
            elif fd in self._clients:
                self._greet(epoll, self._clients[fd], events)
            elif fd in self._by_fd:
                self._on_stream(self._by_fd[fd], events)
        self.notify(active, RX)

    def _accept(self, active: ActiveDevice, epoll: select.epoll) -> None:
        client = self._gate.accept()
        if client is None:  # no more descriptors: it waits, and would be offered again without end
            epoll.modify(self._gate, 0)
            self._loop.call_later(_AGAIN_S, self._heed_gate, active.lock)
        else:
            self._clients[client.fileno()] = client
            epoll.register(client, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
            self._heed_gate()

    def _greet(self, epoll: select.epoll, client: socket.socket, events: int) -> None:
        guest_port = None
        try:
            guest_port = read_port(client)
        except BlockingIOError:
            if not events & (select.EPOLLRDHUP | select.EPOLLHUP):
                return
        except (OSError, ValueError):
            pass
        epoll.unregister(client)
        del self._clients[client.fileno()]
        if guest_port is None:
            client.close()
            self._heed_gate()
            return
        spare = next((key for key in self._spare if key[1] == guest_port), None)
        if spare:
            stream = self._add(Stream(client, *spare))
            stream.learn(*self._spare.pop(spare))
            stream.establish()  # if the client is gone, there is an event that tells
        else:
            stream = self._add(Stream(client, _FIRST_HOST_PORT + self._next_port, guest_port))
            self._next_port = (self._next_port + 1) % _HOST_PORTS
            stream.owed.add(Op.REQUEST)
        self._ready[stream] = None

    def _on_stream(self, stream: Stream, events: int) -> None:
        if stream.waiting and events & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
            stream.flush()
        key = (stream.host_port, stream.guest_port)
        if self._streams.get(key) is not stream:
            if stream.waiting:
                self._wait(stream)
            else:
                self._forget(stream)
            return
        if events & select.EPOLLHUP and (stream.ended or not stream.open):
            self._refuse(key, Op.SHUTDOWN)
            return
        if events & (select.EPOLLIN | select.EPOLLHUP):
            stream.readable = True
        self._shut_down(stream)
        self._ready[stream] = None

    def _shut_down(self, stream: Stream) -> None:
        """Let the host know what the guest will not do any more, once it has all that the guest sent."""
        how = {RECEIVE: 0, SEND: 1, RECEIVE | SEND: 2}  # SHUT_RD, SHUT_WR, SHUT_RDWR
        flags = stream.guest_shutdown & (RECEIVE | SEND if not stream.waiting else RECEIVE)
        if flags:
            try:
                stream.peer.shutdown(how[flags])
            except OSError:  # it is gone altogether: an event will tell
                return

    # To the guest.

    def _fill(self, active: ActiveDevice, buffer: DescriptorChain) -> int | None:
        """Put the next packet into *buffer*; None if there is none after all."""
        if buffer.writable_bytes < HEADER.size:
            active.tally.count(f"{self.name}.malformed")
            return 0
        if self._resets:
            return chain.scatter(buffer.writable, self._resets.popleft())
        room = chain.split(buffer.writable, HEADER.size)[1]
        while self._ready:
            stream = next(iter(self._ready))
            del self._ready[stream]
            packet = stream.next_packet(self._cid, room)
            if packet is None:
                self._wait(stream)
                continue
            header, size = packet
            self._ready[stream] = None
            chain.scatter(buffer.writable, header)
            active.tally.count(f"{self.name}.bytes_in", size)
            if active.trace:
                active.trace(f"{self.name} {stream.host_port} -> {stream.guest_port} {header[30]} +{size:#x}")
            return HEADER.size + size
        return None

    # The host's sockets.

    def _is_full(self) -> bool:
        return len(self._clients) + len(self._by_fd) >= STREAMS_MAX

    def _heed_gate(self) -> None:
        """Let clients in while there is room for them."""
        if self._epoll is not None:
            self._epoll.modify(self._gate, 0 if self._is_full() else select.EPOLLIN)

    def _add(self, stream: Stream) -> Stream:
        self._streams[stream.host_port, stream.guest_port] = stream
        self._by_fd[stream.peer.fileno()] = stream
        if self._epoll is not None:
            self._epoll.register(stream.peer, _ONCE)
            self._heed_gate()
        return stream

    def _wait(self, stream: Stream) -> None:
        """Look at the host's side of *stream* again when it can do what is wanted of it, or is gone."""
        if self._epoll is None or stream.peer.fileno() not in self._by_fd:
            return
        wanted = select.EPOLLOUT if stream.waiting else 0
        if stream.readable:  # it is the guest who has to give credit
            if not wanted:
                return
        elif stream.open and not stream.ended:
            wanted |= select.EPOLLIN
        self._epoll.modify(stream.peer, wanted | _ONCE)

    def _forget(self, stream: Stream) -> None:
        """Close the host's side of *stream*."""
        if self._by_fd.pop(stream.peer.fileno(), None) is not None:
            if self._epoll is not None:
                self._epoll.unregister(stream.peer)
            stream.peer.close()
            self._heed_gate()
