"""Split virtqueues (VIRTIO 1.2 §2.7): what the driver configures, and the live ring made from it.

=========  ============================  =========  ==================================================
area       gpa                           alignment  layout
=========  ============================  =========  ==================================================
desc       table of descriptors          16         size x { le64 address, le32 len, le16 flags, next }
driver     available ring                2          le16 flags, idx, ring[size], used_event
device     used ring                     4          le16 flags, idx, { le32 id, len }[size], le16 avail_event
=========  ============================  =========  ==================================================
"""

from __future__ import annotations

import struct

from vmm.errors import GuestFault
from vmm.virtio import chain
from vmm.virtio.spec import AVAIL_F_NO_INTERRUPT, DESCRIPTOR_SIZE, USED_F_NO_NOTIFY, Feature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.memory import GuestMemory

_pack_used = struct.Struct("<II").pack  # le32 id, le32 len
_USED_SIZE = 8
_RING = 4  # offset of ring[] in both rings
_parse = chain.parse


class QueueError(GuestFault):
    """The driver configured a queue, or moved its index, in a way that VIRTIO 1.2 §2.7 forbids."""


class QueueConfig:
    """What the driver programs, before it is believed: sizes in entries, areas as guest-physical addresses."""

    __slots__ = ("desc", "device", "driver", "max_size", "ready", "size")
    #: What the driver says.
    KEPT = ("size", "desc", "driver", "device", "ready")

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """Forget everything the driver said."""
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.ready = False

    def activate(self, memory: GuestMemory, features: int) -> VirtQueue:
        """The live queue.

        Raises:
            QueueError: the size is no power of two or larger than `max_size`, or an area is not aligned or not in RAM.
        """
        size = self.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise QueueError(f"a queue size of {size}")
        areas = (
            ("descriptor table", self.desc, 16, DESCRIPTOR_SIZE * size),
            ("available ring", self.driver, 2, _RING + 2 * size + 2),
            ("used ring", self.device, 4, _RING + _USED_SIZE * size + 2),
        )
        for name, gpa, alignment, area_bytes in areas:
            if gpa % alignment:
                raise QueueError(f"the {name} at {gpa:#x} is not aligned to {alignment}")
            if not memory.contains(gpa, area_bytes):
                raise QueueError(f"the {name} at {gpa:#x}+{area_bytes:#x} is not in RAM")
        return VirtQueue(memory, self, features)


class VirtQueue:
    """A live ring. Its owner calls `pop` for each buffer, `push` when it is done with it, and `publish` for the lot.

    Used entries are staged by `push` and seen by the driver from `publish` on, so a batch costs one index store and at
    most one interrupt. Made by `QueueConfig.activate`, so its areas are RAM and index accesses cannot fail.
    """

    __slots__ = (
        "_avail_event", "_avail_idx", "_memory", "_published", "_used_event",
        "desc", "device", "driver", "event_idx", "indirect_max", "next_avail", "next_used", "size", "stopped",
    )  # fmt: skip

    def __init__(self, memory: GuestMemory, config: QueueConfig, features: int) -> None:
        self._memory = memory
        self.size = config.size
        self.desc, self.driver, self.device = config.desc, config.driver, config.device
        self._used_event = self.driver + _RING + 2 * self.size
        self._avail_event = self.device + _RING + _USED_SIZE * self.size
        self.event_idx = bool(features & Feature.EVENT_IDX)
        # Indirect tables may be longer than a ring that the driver made small, but never than the device promised.
        self.indirect_max = config.max_size if features & Feature.INDIRECT_DESC else None
        self._avail_idx = 0  # avail.idx when it was last read
        self._published = 0  # used.idx as the driver sees it
        #: The next entry to take from the available ring, and to fill in the used ring; both modulo 2^16.
        self.next_avail = 0
        self.next_used = 0
        #: Whether the driver took the queue back: its memory may be in other use, and is touched no more.
        self.stopped = False

    def go_on_at(self, next_avail: int, next_used: int) -> None:
        """Somebody else has served the queue so far, and published everything."""
        self.next_avail = self._avail_idx = next_avail & 0xFFFF
        self.next_used = self._published = next_used & 0xFFFF

    def stop(self) -> None:
        """The driver takes the queue back (QueueReady = 0): nothing is taken from it or put into it from now on."""
        self.stopped = True
        self._avail_idx = self.next_avail

    def pop(self) -> chain.DescriptorChain | None:
        """The next buffer that the driver made available; None if there is none.

        Raises:
            QueueError: avail.idx is further ahead than the ring is long.
            DescriptorError, GuestMemoryError: as `chain.parse`. The buffer stays in the queue.
        """
        if self.next_avail == self._avail_idx and not self._refresh():
            return None
        memory = self._memory
        size = self.size
        head = memory.load_u16(self.driver + _RING + 2 * (self.next_avail & (size - 1)))
        popped = _parse(memory, self.desc, size, head, indirect_max=self.indirect_max)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        return popped

    def unpop(self) -> None:
        """Put the buffer that was popped last back, unused."""
        self.next_avail = (self.next_avail - 1) & 0xFFFF
        if self.stopped:
            self._avail_idx = self.next_avail  # it is not to be popped again

    def push(self, head: int, written: int) -> None:
        """Stage the buffer *head* as used, with *written* bytes written from its first writable byte on."""
        if self.stopped:
            return
        entry = self.device + _RING + _USED_SIZE * (self.next_used & (self.size - 1))
        self._memory.write(entry, _pack_used(head, written))
        self.next_used = (self.next_used + 1) & 0xFFFF

    def publish(self) -> bool:
        """Let the driver see the staged buffers; whether it wants an interrupt for them (VIRTIO 1.2 §2.7.7.2)."""
        new, old = self.next_used, self._published
        if new == old or self.stopped:
            return False
        memory = self._memory
        memory.store_u16(self.device + 2, new)
        self._published = new
        memory.fence()  # used.idx before used_event or the flags: else both sides may wait for each other
        if self.event_idx:
            event = memory.load_u16(self._used_event)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not memory.load_u16(self.driver) & AVAIL_F_NO_INTERRUPT

    def suppress_kicks(self) -> None:
        """Ask the driver not to kick: the device is looking at the ring anyway."""
        if not self.event_idx and not self.stopped:
            self._memory.store_u16(self.device, USED_F_NO_NOTIFY)
        # With EVENT_IDX, leaving avail_event where it is asks for none.

    def want_kicks(self) -> bool:
        """Ask the driver to kick for the next buffer; False if one came meanwhile, so that no kick may follow."""
        if self.stopped:
            return True
        if self.event_idx:
            self._memory.store_u16(self._avail_event, self.next_avail)
        else:
            self._memory.store_u16(self.device, 0)
        self._memory.fence()  # the wish before the look
        return not self._refresh()

    def _refresh(self) -> bool:
        """Read avail.idx; whether it is ahead of us."""
        if self.stopped:
            return False
        index = self._memory.load_u16(self.driver + 2)
        ahead = (index - self.next_avail) & 0xFFFF
        if ahead > self.size:
            raise QueueError(f"avail.idx jumped to {index}, {ahead} ahead in a ring of {self.size}")
        self._avail_idx = index
        return ahead != 0
