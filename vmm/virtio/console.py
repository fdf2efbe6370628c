"""virtio console device (VIRTIO 1.2 §5.3): one port, whose bytes go through a receive and a transmit queue.

=======  =====  =====================================================
offset   size   configuration space (§5.3.4)
=======  =====  =====================================================
0x00     le16   cols: the terminal's size in characters
0x02     le16   rows
0x04     le32   max_nr_ports
0x08     le32   emerg_wr
=======  =====  =====================================================

MULTIPORT and EMERG_WRITE are not offered, so only the size means something. Nothing is lost or kept without bound:

* Out: while the host takes no more, the buffer that it refused and those after it stay in the transmit queue.
* In: what the host sends waits here until the driver gives buffers for it; then the source is told to stop.
"""

from __future__ import annotations

import os
import struct

from vmm.state import attributes, put_back
from vmm.virtio import chain
from vmm.virtio.device import VirtioDevice
from vmm.virtio.spec import DeviceId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.host.console import ByteSink
    from vmm.state import State
    from vmm.virtio.chain import DescriptorChain
    from vmm.virtio.device import ActiveDevice

RECEIVE, TRANSMIT = 0, 1
#: Linux fills the receive queue with pages, and has one buffer at a time in the transmit queue.
QUEUE_SIZE = 16
#: The source is told to stop when this many bytes wait for the driver, and to go on when it has taken them.
INPUT_LIMIT = 4096
#: What is offered to the host at once; the rest of a longer buffer waits for the loop's next turn.
PIECE = 4096

_CONFIG = struct.Struct("<HHII")


class ConsoleFeature:
    """Feature bits (VIRTIO 1.2 §5.3.3)."""

    SIZE = 1 << 0


class ConsoleDevice(VirtioDevice):
    """A console whose output goes to *output* and whose input comes by `receive`.

    *size* gives the columns and rows of the terminal at the other end, None if there is none. `receive`,
    `output_drained` and `resized` are called with the transport's lock held.
    """

    device_id = DeviceId.CONSOLE
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(self, name: str, output: ByteSink, size: Callable[[], tuple[int, int] | None]) -> None:
        super().__init__(name)
        self._output, self._size = output, size
        self.features = ConsoleFeature.SIZE if size() else 0
        #: Called (lock held, so it must only ask the loop) when `receive` has said False and may be called again.
        self.input_wanted: Callable[[], None] = lambda: None
        self._input = bytearray()
        self._input_stopped = False
        self._sent = 0  # of the first buffer in the transmit queue, in bytes
        self._active: ActiveDevice | None = None
        self.config += bytes(_CONFIG.size)
        self._show_config()

    # The host's side.

    def receive(self, data: bytes) -> bool:
        """Take *data* from the other end; whether more is welcome now.

        After False the source waits until `input_wanted` is called.
        """
        self._input += data
        self._input_stopped = len(self._input) >= INPUT_LIMIT
        self._rouse(RECEIVE)
        return not self._input_stopped

    @property
    def input_stopped(self) -> bool:
        """Whether `receive` has said False, and `input_wanted` is yet to be called."""
        return self._input_stopped

    def output_drained(self) -> None:
        """The output takes bytes again: send what has been waiting."""
        self._rouse(TRANSMIT)

    def resized(self) -> None:
        """The terminal has another size."""
        self._show_config()
        if self._active is not None and self._active.features & ConsoleFeature.SIZE:
            self._active.interrupts.config()

    def _show_config(self) -> None:
        cols, rows = self._size() or (0, 0)
        self.generation += 1
        self.config[:] = _CONFIG.pack(cols, rows, 1, 0)

    # The guest's side.

    def activate(self, active: ActiveDevice) -> None:
        """The driver is ready. Linux looks at the size only when it is told of a new one."""
        self._active = active
        self._sent = 0
        self.resized()

    def notify(self, active: ActiveDevice, index: int) -> None:
        """Send what is in the transmit queue, or put what waits into the receive queue."""
        if index == TRANSMIT:
            active.serve(TRANSMIT, self._send)
            return
        active.serve(RECEIVE, self._fill, lambda: bool(self._input))
        if self._input_stopped and not self._input:
            self._input_stopped = False
            self.input_wanted()

    def state(self) -> State:
        """As `VirtioDevice.state`."""
        return attributes(self, ("_input", "_sent"))

    def restore(self, state: State) -> None:
        """As `VirtioDevice.restore`."""
        put_back(self, ("_input", "_sent"), state)

    def reset(self) -> None:
        """Let go of the driver; the input that it did not take waits for the next one."""
        self._active = None

    def _rouse(self, index: int) -> None:
        """Have queue *index* served on the loop's next turn, as if it had been kicked: faults are contained there."""
        if self._active is not None:
            os.eventfd_write(self._active.kick_fds[index], 1)

    def _fill(self, active: ActiveDevice, request: DescriptorChain) -> int:
        written = chain.scatter(request.writable, self._input)
        del self._input[:written]
        active.tally.count(f"{self.name}.bytes_in", written)
        if active.trace:
            active.trace(f"{self.name} in {written:#x}")
        return written

    def _send(self, active: ActiveDevice, request: DescriptorChain) -> int | None:
        waiting = chain.split(request.readable, self._sent)[1]
        piece = chain.gather(waiting, PIECE) if waiting else b""
        if not self._output.write(piece):
            return None  # `output_drained` goes on
        active.tally.count(f"{self.name}.bytes_out", len(piece))
        if active.trace:
            active.trace(f"{self.name} out {len(piece):#x}")
        self._sent += len(piece)
        if self._sent < request.readable_bytes:
            self._rouse(TRANSMIT)
            return None
        self._sent = 0
        return 0
