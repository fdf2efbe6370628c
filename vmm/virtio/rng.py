"""virtio entropy device (VIRTIO 1.2 §5.4): one queue; the device fills the buffers with random bytes."""

from __future__ import annotations

import os

from vmm.virtio import chain
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice

#: What one buffer gets at most, in bytes. The driver asks again if it wants more.
REQUEST_MAX = 64 << 10


class RngDevice(VirtioDevice):
    """Random bytes from the host's kernel."""

    device_id = DeviceId.ENTROPY
    queue_sizes = (64,)

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Fill all buffers in the queue."""
        active.serve(index, self._fill)

    def _fill(self, active: ActiveDevice, request: DescriptorChain) -> int:
        wanted = min(request.writable_bytes, REQUEST_MAX)
        written = chain.scatter(request.writable, os.getrandom(wanted)) if wanted else 0
        active.tally.count(f"{self.name}.bytes_read", written)
        if active.trace:
            active.trace(f"{self.name} read +{request.writable_bytes:#x} -> {written:#x}")
        return written
