"""Plain registers are answered by the vCPU's thread in C: the guest's access is no exit of Python's."""

from __future__ import annotations

import struct
import threading

import pytest

from tests.kvm.code import mov, registers
from vmm.bus import Bus
from vmm.kvm import abi
from vmm.kvm.exits import MmioRead, MmioWrite, PortRead, PortWrite, VcpuExit
from vmm.kvm.scratch import CODE, MMIO, REPORT, REPORT_PORT, ScratchGuest
from vmm.native.plain import PlainRegisters
from vmm.regs import PlainRegister

pytestmark = pytest.mark.kvm

IN_0X60, IN_0X61, OUT_0X60 = b"\xe4\x60", b"\xe4\x61", b"\xe6\x60"
IN_0X60_WORD = b"\x66\xe5\x60"
LOAD, STORE = b"\x8b\x07", b"\x89\x07"  # mov eax, [rdi]; mov [rdi], eax


class Chip:
    """A device of plain registers only, at port 0x60 and at `MMIO`."""

    name = "chip"

    def __init__(self, *plain: PlainRegister) -> None:
        self.lock = threading.Lock()
        self.plain = plain

    def read(self, offset: int, size: int) -> int:
        raise AssertionError(f"asked for {size} bytes at {offset:#x}")

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError(f"told {value:#x} at {offset:#x}")

    def register_name(self, offset: int) -> str:
        return f"+{offset:#x}"


class Rig:
    """A scratch guest whose buses have *plain* registers in ports, and perhaps in memory."""

    def __init__(self, guest: ScratchGuest, *plain: PlainRegister, mmio: tuple[PlainRegister, ...] = ()) -> None:
        self.guest = guest
        self.pio, self.mmio = Bus("pio"), Bus("mmio")
        self.chip = Chip(*plain)
        self.pio.attach(0x60, 4, self.chip)
        self.mmio.attach(MMIO, 0x1000, Chip(*mmio))
        guest.vcpu.enter_by(PlainRegisters(self.pio, self.mmio).runner)

    def run(self, code: bytes) -> VcpuExit:
        """The first exit of *code* that is Python's."""
        self.guest.memory.write(CODE, code + REPORT)
        self.guest.start(CODE)
        return self.guest.run()


def is_report(event: VcpuExit) -> bool:
    return isinstance(event, PortWrite) and event.port == REPORT_PORT


def test_a_port_reads_what_was_written_to_it(guest: ScratchGuest) -> None:
    register = PlainRegister(0, bytearray(1), width=1, writable=True)
    rig = Rig(guest, register)
    assert is_report(rig.run(b"\xb0\x5a" + OUT_0X60 + b"\xb0\x00" + IN_0X60))  # mov al, 0x5a … mov al, 0
    assert registers(guest)[abi.RAX] & 0xFF == 0x5A
    assert register.storage == b"\x5a"
    assert int.from_bytes(register.accesses, "little") == 2


def test_what_python_puts_there_is_what_the_guest_reads(guest: ScratchGuest) -> None:
    register = PlainRegister(4, bytearray(struct.pack("<I", 0xCAFE)), width=4)
    rig = Rig(guest, mmio=(register,))
    code = mov(7, MMIO + 4) + LOAD
    assert is_report(rig.run(code))
    assert registers(guest)[abi.RAX] == 0xCAFE
    register.storage[:] = struct.pack("<I", 0xBEEF)
    assert is_report(rig.run(code))
    assert registers(guest)[abi.RAX] == 0xBEEF


@pytest.mark.parametrize(
    ("code", "exit_type"),
    [
        (OUT_0X60, PortWrite),
        (IN_0X60_WORD, PortRead),
        (IN_0X61, PortRead),
        (mov(7, MMIO + 2) + LOAD, MmioRead),
        (mov(7, MMIO + 12) + LOAD, MmioRead),
        (mov(7, MMIO + 8) + STORE, MmioWrite),
    ],
    ids=[
        "a write to what only reads",
        "another width",
        "another register",
        "beyond a register",
        "beyond a row",
        "write",
    ],
)
def test_what_is_not_plain_is_python_s(guest: ScratchGuest, code: bytes, exit_type: type) -> None:
    row, register = PlainRegister(8, bytearray(6)), PlainRegister(0, bytearray(4), width=4)
    event = Rig(guest, PlainRegister(0, bytearray(1), width=1), mmio=(register, row)).run(code)
    assert isinstance(event, exit_type)
    assert not is_report(event)


def test_a_row_without_a_width_takes_any(guest: ScratchGuest) -> None:
    rig = Rig(guest, mmio=(PlainRegister(8, bytearray(b"abcdef")),))
    assert is_report(rig.run(mov(7, MMIO + 10) + LOAD))
    assert registers(guest)[abi.RAX] == int.from_bytes(b"cdef", "little")


def test_a_device_that_left_answers_no_more(guest: ScratchGuest) -> None:
    rig = Rig(guest, PlainRegister(0, bytearray(1), width=1))
    rig.pio.detach(rig.chip)
    rig.pio.attach(0x61, 4, rig.chip)
    assert is_report(rig.run(IN_0X61))
    assert isinstance(rig.run(IN_0X60), PortRead)
