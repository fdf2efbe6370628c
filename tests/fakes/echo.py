"""A virtio device that does next to nothing, to try transports with."""

from __future__ import annotations

from tests.fakes.driver import Rig
from vmm.virtio.chain import DescriptorChain, scatter
from vmm.virtio.device import ActiveDevice, VirtioDevice

OWN_FEATURE = 1 << 3


class EchoDevice(VirtioDevice):
    """Copies what it can read to where it can write; remembers its life."""

    device_id = 42
    queue_sizes = (8, 256)
    features = OWN_FEATURE

    def __init__(self) -> None:
        super().__init__("echo0")
        self.config += bytes(range(0x10, 0x1A))
        self.life: list[str] = []
        self.active: ActiveDevice | None = None
        self.served = 0

    def activate(self, active: ActiveDevice) -> None:
        self.life.append("activate")
        self.active = active

    def notify(self, active: ActiveDevice, index: int) -> None:
        active.serve(index, self._echo)

    def reset(self) -> None:
        self.life.append("reset")
        self.active = None

    def _echo(self, _active: ActiveDevice, chain: DescriptorChain) -> int:
        self.served += 1
        return scatter(chain.writable, b"".join(chain.readable)) if chain.writable else 0


def echo(rig: Rig, text: bytes = b"hello") -> bytes:
    """One round through queue 0."""
    queue = rig.driver.queues[0]
    target = rig.arena.writable(len(text))
    head = queue.add([rig.arena.readable(text), target])
    rig.driver.kick(0)
    assert queue.collect() == [(head, len(text))]
    return rig.arena.content(target)
