"""One connection between a socket of the guest and one of the host (VIRTIO 1.2 §5.10.6).

Packets begin with a header; `buf_alloc` and `fwd_cnt` in each of them are the sender's credit:

=======  =====  ==========  =======================================================================
offset   size   field       meaning
=======  =====  ==========  =======================================================================
0x00     le64   src_cid     who sends: the guest's CID, or `HOST_CID`
0x08     le64   dst_cid
0x10     le32   src_port
0x14     le32   dst_port
0x18     le32   len         of the data that follows
0x1c     le16   type        `STREAM`
0x1e     le16   op          `Op`
0x20     le32   flags       of SHUTDOWN: `RECEIVE`, `SEND`
0x24     le32   buf_alloc   how much the sender can hold for this connection, in bytes
0x28     le32   fwd_cnt     how much of what it got it has passed on, modulo 2^32
=======  =====  ==========  =======================================================================
"""

from __future__ import annotations

import struct

from vmm.virtio import chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

HEADER = struct.Struct("<QQIIIHHIII")
HOST_CID = 2
STREAM = 1
#: What waits in us, at most, for the host's side of one connection to take it, in bytes.
BUFFER_BYTES = 128 << 10
_U32 = 0xFFFF_FFFF


class Op:
    """What a packet is for (VIRTIO 1.2 §5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


#: Flags of SHUTDOWN: the sender will receive, or send, no more.
RECEIVE, SEND = 1, 2


class Stream:
    """A connection of *host_port* to the guest's *guest_port*, whose data *peer*, non-blocking, gives and takes.

    Knows nothing of queues: its owner asks for packets with `next_packet` and brings the guest's. What the host sends
    stays in *peer* until the guest has credit and buffers for it, so only what the guest sends is ever held here, and
    of that no more than the `BUFFER_BYTES` which the guest was told of.
    """

    def __init__(self, peer: socket.socket, host_port: int, guest_port: int) -> None:
        self.peer, self.host_port, self.guest_port = peer, host_port, guest_port
        #: Whether both sides have agreed to it.
        self.open = False
        #: Packets that the guest is to get, by `Op`.
        self.owed: set[int] = set()
        #: Whether *peer* may have data, or its end, to be read.
        self.readable = False
        #: Whether *peer* sends, and takes, no more.
        self.ended = self.deaf = False
        #: Data of the guest that *peer* has not taken yet.
        self.waiting = bytearray()
        self.guest_shutdown = 0
        self._passed_on = self._told_passed_on = 0  # our fwd_cnt, and what the guest knows of it
        self._sent = 0
        self._guest_alloc = self._guest_passed_on = 0

    def establish(self) -> bool:
        """Both sides agree to it: tell the host's; False: that is gone."""
        try:
            self.peer.send(b"OK %d\n" % self.host_port)  # the first bytes in that direction: there is room
        except OSError:
            return False
        self.open = self.readable = True
        return True

    @property
    def is_fresh(self) -> bool:
        """Whether neither side has sent anything, or its end, on it, or waits for an answer."""
        used = self._sent or self._passed_on or self.waiting or self.ended or self.guest_shutdown or self.owed
        return self.open and not used

    @property
    def guest_credit(self) -> tuple[int, int]:
        """What the guest has told of its credit, as `learn` takes it."""
        return self._guest_alloc, self._guest_passed_on

    # From the guest.

    def learn(self, buf_alloc: int, fwd_cnt: int) -> None:
        """The guest tells its credit."""
        self._guest_alloc, self._guest_passed_on = buf_alloc, fwd_cnt

    @property
    def credit(self) -> int:
        """How many bytes the guest takes now."""
        return max(0, self._guest_alloc - (self._sent - self._guest_passed_on & _U32))

    def take(self, data: Sequence[memoryview], size: int) -> bool:
        """The guest sends the *size* bytes in *data*; False: more than it was told may wait."""
        if len(self.waiting) + size > BUFFER_BYTES:
            return False
        taken = 0
        if not self.waiting:
            taken = self._send(data)
        if taken < size:
            self.waiting += chain.gather(chain.split(data, taken)[1], size - taken)
        return True

    def flush(self) -> None:
        """*peer* takes data again: give it what waits."""
        with memoryview(self.waiting) as view:
            taken = self._send([view])
        del self.waiting[:taken]

    def _send(self, data: Sequence[memoryview]) -> int:
        """Give *peer* of *data* what it takes; how many bytes that was, all of them if it takes none for good."""
        size = sum(map(len, data))
        taken = size
        if not self.deaf:
            try:
                taken = self.peer.sendmsg(data[:_IOV_MAX])
            except BlockingIOError:
                return 0
            except OSError:
                self.deaf = True
                self.owed.add(Op.SHUTDOWN)
        self._passed_on = self._passed_on + taken & _U32
        if (self._passed_on - self._told_passed_on & _U32) >= BUFFER_BYTES // 4:
            self.owed.add(Op.CREDIT_UPDATE)
        return taken

    # To the guest.

    def next_packet(self, cid: int, room: Sequence[memoryview]) -> tuple[bytes, int] | None:
        """The header of the next packet for the guest *cid* and how much data, read into *room*, follows it.

        None: there is none, and `readable` and `credit` say what to wait for.
        """
        if self.owed:
            op = min(self.owed)
            self.owed.remove(op)
            return self._header(cid, op, 0), 0
        size = self._read(room) if self.readable and self.open else 0
        if self.owed:
            return self.next_packet(cid, room)
        return (self._header(cid, Op.RW, size), size) if size else None

    def _read(self, room: Sequence[memoryview]) -> int:
        """Read data of *peer* into *room*, as much as the guest takes; how many bytes that was."""
        views = chain.split(room, self.credit)[0]
        if not views:
            return 0
        try:
            size = self.peer.recvmsg_into(views[:_IOV_MAX])[0]
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError:
            size = 0
        if not size:
            self.readable, self.ended = False, True
            self.owed.add(Op.SHUTDOWN)
        self._sent = self._sent + size & _U32
        return size

    def _header(self, cid: int, op: int, size: int) -> bytes:
        flags = 0
        if op == Op.SHUTDOWN:
            flags = (SEND if self.ended else 0) | (RECEIVE if self.deaf else 0)
        self._told_passed_on = self._passed_on
        self.owed.discard(Op.CREDIT_UPDATE)
        return HEADER.pack(
            HOST_CID, cid, self.host_port, self.guest_port, size, STREAM, op, flags, BUFFER_BYTES, self._passed_on
        )


#: As many pieces as one `sendmsg` takes.
_IOV_MAX = 1024


def reset_packet(cid: int, host_port: int, guest_port: int, *, host_cid: int = HOST_CID, kind: int = STREAM) -> bytes:
    """The header that ends, or refuses, a connection of the guest *cid*."""
    return HEADER.pack(host_cid, cid, host_port, guest_port, 0, kind, Op.RST, 0, 0, 0)
