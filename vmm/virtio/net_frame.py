"""Frames as the network device has them: `struct virtio_net_hdr` (VIRTIO 1.2 §5.1.6), then Ethernet.

=======  =====  =====================================================
offset   size   meaning
=======  =====  =====================================================
0x00     1      flags: NEEDS_CSUM, DATA_VALID, RSC_INFO
0x01     1      gso_type
0x02     le16   hdr_len
0x04     le16   gso_size
0x06     le16   csum_start
0x08     le16   csum_offset
0x0a     le16   num_buffers: in how many buffers a received frame lies
0x0c     6      the destination
=======  =====  =====================================================
"""

from __future__ import annotations

from vmm.virtio.bucket import TokenBucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.config import Rate
    from vmm.virtio.net_filter import RxFilter

HEADER_SIZE = 12
GSO_TYPE = 1
NUM_BUFFERS = 10  # offset
#: What of a frame is looked at.
PREFIX_SIZE = HEADER_SIZE + 6
#: The largest frame: 64 KiB to be cut by the other side, with Ethernet and VLAN headers.
FRAME_MAX = HEADER_SIZE + 65535 + 18
FRAME_MIN = HEADER_SIZE + 14
VLAN_TAG = 4
GSO_NONE = 0
#: Who waits for a limit looks this often whether it was changed.
_RECHECK_S = 0.1


class NetFeature:
    """VIRTIO 1.2 §5.1.3."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


GUEST_SEGMENTS = NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6
#: What CTRL_GUEST_OFFLOADS switches (VIRTIO 1.2 §5.1.6.5.6).
GUEST_OFFLOADS = NetFeature.GUEST_CSUM | GUEST_SEGMENTS | NetFeature.GUEST_ECN


class RxRules:
    """Which frames a driver gets. *offloads* are bits of `GUEST_OFFLOADS`; *whole_max* is in bytes, with the header."""

    __slots__ = ("filter", "mergeable", "offloads", "whole_max")

    def __init__(self, features: int, mtu: int, rx_filter: RxFilter) -> None:
        self.mergeable = bool(features & NetFeature.MRG_RXBUF)
        self.offloads = features & GUEST_OFFLOADS
        #: The largest frame that is not to be segmented (VIRTIO 1.2 §5.1.4.1).
        self.whole_max = FRAME_MIN + VLAN_TAG + mtu if features & NetFeature.MTU else FRAME_MAX
        self.filter = rx_filter

    def takes_size(self, gso_type: int, size: int) -> bool:
        """Whether a frame of *size* bytes, header and all, may be given to the driver."""
        if gso_type == GSO_NONE:
            return FRAME_MIN <= size <= self.whole_max
        # Frames to be segmented may be left from a driver that took them; this one must want them too (§5.1.6.4.1).
        return size >= FRAME_MIN and bool(self.offloads & GUEST_SEGMENTS)


class Throttle:
    """The limits of one direction, over all queues: bytes without headers, and frames."""

    __slots__ = ("_bytes", "_frames")

    def __init__(self) -> None:
        self._bytes, self._frames = TokenBucket(), TokenBucket()

    def change(self, bandwidth: Rate | None, frames: Rate | None) -> None:
        """Set other limits."""
        self._bytes.set_rate(bandwidth)
        self._frames.set_rate(frames)

    def account(self, size: int) -> None:
        """A frame of *size* bytes, without its header, went through."""
        self._bytes.take(size)
        self._frames.take(1)

    def delay_s(self) -> float:
        """How long the next frame is to wait, in seconds, before asking again."""
        return min(_RECHECK_S, max(self._bytes.delay_s(), self._frames.delay_s()))
