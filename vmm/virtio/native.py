"""What every device with native workers does the same: hands its memory and queues over, and takes faults back."""

from __future__ import annotations

from vmm.errors import GuestMemoryError
from vmm.native._engine import ffi, lib
from vmm.virtio.chain import DescriptorError
from vmm.virtio.queue import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.errors import GuestFault
    from vmm.memory import GuestMemory
    from vmm.native._engine import CData
    from vmm.virtio.device import ActiveDevice
    from vmm.virtio.queue import VirtQueue


def regions(memory: GuestMemory) -> CData:
    """`struct region[]` of all guest RAM."""
    return ffi.new("struct region[]", list(memory.regions))


def ring_config(queue: VirtQueue) -> CData:
    """`struct ring_config` of *queue*, which its worker goes on with."""
    return ffi.new(
        "struct ring_config *",
        {
            "desc": queue.desc,
            "driver": queue.driver,
            "device": queue.device,
            "size": queue.size,
            "indirect_max": queue.indirect_max or 0,
            "event_idx": queue.event_idx,
            "next_avail": queue.next_avail,
            "next_used": queue.next_used,
        },
    )


def wiring(active: ActiveDevice, index: int) -> CData:
    """`struct wiring` of queue *index*."""
    wire = active.interrupts.wire(index)
    return ffi.new("struct wiring *", (active.kick_fds[index], wire.fd, wire.flag))


def guest_fault(fault: CData) -> GuestFault:
    """What the reference raises where a worker filled in *fault*."""
    if fault.kind == lib.FAULT_MEMORY:
        return GuestMemoryError(fault.gpa, fault.size)
    text = ffi.string(fault.text).decode()
    return QueueError(text) if fault.kind == lib.FAULT_QUEUE else DescriptorError(text)
