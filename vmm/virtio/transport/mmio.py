"""virtio over MMIO, modern (VIRTIO 1.2 §4.2.2): the register face of `TransportCore`."""

from __future__ import annotations

from vmm.regs import PlainRegister, Register, register, write_only
from vmm.virtio.interrupts import LineInterrupts
from vmm.virtio.transport.core import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Unpack

    from vmm.irq import IrqLine
    from vmm.memory import GuestMemory
    from vmm.state import State
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.transport.core import Reporting

MAGIC = int.from_bytes(b"virt", "little")
VERSION = 2
VENDOR = int.from_bytes(b"PYVM", "little")
QUEUE_NOTIFY = 0x050
CONFIG = 0x100
_U32 = 0xFFFF_FFFF


def _half(offset: int, name: str, area: str, shift: int) -> Register:
    """32 bits of a queue area's address."""
    return write_only(offset, name)(lambda transport, value: transport.core.set_queue_area(area, shift, value))


class MmioTransport(Transport):
    """One virtio device on the MMIO bus. The kicks are writes to `QUEUE_NOTIFY`, the queue's index as the value."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        irq: IrqLine,
        **reporting: Unpack[Reporting],
    ) -> None:
        self._interrupts = LineInterrupts(irq)
        super().__init__(device, memory, self._interrupts, **reporting)
        self.plain = (PlainRegister(CONFIG, device.config),)

    # The configuration space takes every width at every offset; the registers are 32 bits wide.

    def read(self, offset: int, size: int) -> int:
        """As `RegisterBlock.read`, with the configuration space from `CONFIG` on."""
        if offset >= CONFIG:
            return self.device.read_config(offset - CONFIG, size)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As `RegisterBlock.write`, with the configuration space from `CONFIG` on."""
        if offset >= CONFIG:
            self.device.write_config(offset - CONFIG, size, value)
        else:
            super().write(offset, size, value)

    def register_name(self, offset: int) -> str:
        """As `RegisterBlock.register_name`."""
        return f"Config+{offset - CONFIG:#x}" if offset >= CONFIG else super().register_name(offset)

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        return {"core": self.core.state(), "causes": self._interrupts.state()}

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`."""
        self.core.restore(state["core"])
        self._interrupts.restore(state["causes"])

    # Identity.

    @register(0x000, "MagicValue")
    def magic(self) -> int:
        return MAGIC

    @register(0x004, "Version")
    def version(self) -> int:
        return VERSION

    @register(0x008, "DeviceID")
    def device_id(self) -> int:
        return self.device.device_id

    @register(0x00C, "VendorID")
    def vendor_id(self) -> int:
        return VENDOR

    # Negotiation.

    @register(0x010, "DeviceFeatures")
    def device_features(self) -> int:
        return self.core.read_device_features()

    @write_only(0x014, "DeviceFeaturesSel")
    def device_features_sel(self, value: int) -> None:
        self.core.device_features_select = value

    @write_only(0x020, "DriverFeatures")
    def driver_features(self, value: int) -> None:
        self.core.write_driver_features(value)

    @write_only(0x024, "DriverFeaturesSel")
    def driver_features_sel(self, value: int) -> None:
        self.core.driver_features_select = value

    @register(0x070, "Status")
    def status(self) -> int:
        return self.core.status

    @status.writer
    def _write_status(self, value: int) -> None:
        self.core.write_status(value)

    # Queues.

    @write_only(0x030, "QueueSel")
    def queue_sel(self, value: int) -> None:
        self.core.queue_select = value

    @register(0x034, "QueueNumMax")
    def queue_num_max(self) -> int:
        return self.core.queue.max_size if self.core.queue else 0

    @write_only(0x038, "QueueNum")
    def queue_num(self, value: int) -> None:
        queue = self.core.open_queue
        if queue is not None:
            queue.size = value

    @register(0x044, "QueueReady")
    def queue_ready(self) -> int:
        return int(self.core.queue.ready) if self.core.queue else 0

    @queue_ready.writer
    def _write_queue_ready(self, value: int) -> None:
        self.core.write_queue_ready(value)

    @write_only(QUEUE_NOTIFY, "QueueNotify")
    def queue_notify(self, value: int) -> None:
        self.core.notify(value)

    queue_desc_low = _half(0x080, "QueueDescLow", "desc", 0)
    queue_desc_high = _half(0x084, "QueueDescHigh", "desc", 32)
    queue_driver_low = _half(0x090, "QueueDriverLow", "driver", 0)
    queue_driver_high = _half(0x094, "QueueDriverHigh", "driver", 32)
    queue_device_low = _half(0x0A0, "QueueDeviceLow", "device", 0)
    queue_device_high = _half(0x0A4, "QueueDeviceHigh", "device", 32)

    # Interrupts.

    @register(0x060, "InterruptStatus")
    def interrupt_status(self) -> int:
        return self._interrupts.status

    @write_only(0x064, "InterruptACK")
    def interrupt_ack(self, value: int) -> None:
        self._interrupts.acknowledge(value)

    # Shared memory regions: none. A region that does not exist has a length and a base of -1.

    @write_only(0x0AC, "SHMSel")
    def shm_sel(self, value: int) -> None:
        pass

    shm_len_low = Register(0x0B0, "SHMLenLow", 4, lambda _: _U32)
    shm_len_high = Register(0x0B4, "SHMLenHigh", 4, lambda _: _U32)
    shm_base_low = Register(0x0B8, "SHMBaseLow", 4, lambda _: _U32)
    shm_base_high = Register(0x0BC, "SHMBaseHigh", 4, lambda _: _U32)

    @register(0x0FC, "ConfigGeneration")
    def config_generation(self) -> int:
        return self.core.device.generation
