"""Plain and posted registers are answered by the vCPU's thread in C: the guest's access is no exit of Python's."""

from __future__ import annotations

import select
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.kvm.code import mov, registers
from vmm.bus import Bus
from vmm.kvm import abi
from vmm.kvm.exits import Interrupted, MmioRead, MmioWrite, PortRead, PortWrite, VcpuExit
from vmm.kvm.scratch import CODE, MMIO, REPORT, REPORT_PORT, ScratchGuest
from vmm.native.plain import PlainRegisters
from vmm.regs import POSTED_MAX, PlainRegister, PostedRegister

pytestmark = pytest.mark.kvm

IN_0X60, IN_0X61, OUT_0X60 = b"\xe4\x60", b"\xe4\x61", b"\xe6\x60"
IN_0X60_WORD = b"\x66\xe5\x60"
LOAD, STORE = b"\x8b\x07", b"\x89\x07"  # mov eax, [rdi]; mov [rdi], eax


class Chip:
    """A device of plain and posted registers only, at port 0x60 and at `MMIO`."""

    name = "chip"

    def __init__(self, *plain: PlainRegister | PostedRegister) -> None:
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

    def __init__(
        self,
        guest: ScratchGuest,
        *plain: PlainRegister | PostedRegister,
        mmio: tuple[PlainRegister, ...] = (),
    ) -> None:
        self.guest = guest
        self.pio, self.mmio = Bus("pio"), Bus("mmio")
        self.chip = Chip(*plain)
        self.pio.attach(0x60, 4, self.chip)
        self.mmio.attach(MMIO, 0x1000, Chip(*mmio))
        self.registers = PlainRegisters(self.pio, self.mmio)
        guest.vcpu.enter_by(self.registers.runner)

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


def test_a_register_that_is_closed_is_python_s_until_it_is_open_again(guest: ScratchGuest) -> None:
    register = PlainRegister(0, bytearray(1), width=1, writable=True)
    rig = Rig(guest, register)
    register.open(False)
    assert isinstance(rig.run(IN_0X60), PortRead)
    register.open(True)
    assert is_report(rig.run(IN_0X60))


# Posted registers.


class Posting:
    """A guest that writes to a posted register, and what arrived of it."""

    def __init__(self, guest: ScratchGuest) -> None:
        self.arrived = bytearray()
        self.register = PostedRegister(0, threading.Lock(), self._take)
        self.rig = Rig(guest, self.register)

    def _take(self) -> None:
        self.arrived += self.register.take()

    def write(self, value: int, times: int) -> VcpuExit:
        """The first exit of a loop that writes *value*, *times* times."""
        return self.rig.run(mov(1, times) + b"\xb0" + bytes((value,)) + OUT_0X60 + b"\xff\xc9\x75\xfa")  # dec ecx; jnz


@pytest.fixture
def posting(guest: ScratchGuest) -> Iterator[Posting]:
    """One whose writes are collected."""
    made = Posting(guest)
    assert made.rig.registers.timer_fd >= 0
    yield made
    made.rig.registers.close()


def test_what_is_posted_is_handed_over_in_order(posting: Posting) -> None:
    for value in (1, 2):
        assert is_report(posting.write(value, 3))
    assert not posting.arrived
    posting.rig.registers.hand_over()
    assert posting.arrived == b"\1\1\1\2\2\2"
    assert int.from_bytes(posting.register.accesses, "little") == 6


def test_the_timer_goes_off_once_for_what_is_posted(posting: Posting) -> None:
    registers = posting.rig.registers
    assert not select.select([registers.timer_fd], [], [], 0.01)[0]
    for _ in range(2):
        posting.write(1, 1)
        assert select.select([registers.timer_fd], [], [], 10)[0]
        registers.hand_over()
        assert not select.select([registers.timer_fd], [], [], 0.01)[0]


def test_what_does_not_fit_is_python_s(posting: Posting) -> None:
    event = posting.write(7, POSTED_MAX + 1)
    assert isinstance(event, PortWrite)
    assert not is_report(event)
    posting.rig.registers.hand_over()
    assert posting.arrived == bytes((7,)) * POSTED_MAX


def test_a_posted_register_is_read_from_the_device(posting: Posting) -> None:
    assert isinstance(posting.rig.run(IN_0X60), PortRead)


def test_nothing_is_posted_where_nobody_watches_the_timer(guest: ScratchGuest) -> None:
    assert not is_report(Posting(guest).write(1, 1))


def test_what_was_posted_last_is_handed_over_at_the_end(guest: ScratchGuest) -> None:
    posting = Posting(guest)
    assert posting.rig.registers.timer_fd >= 0
    posting.write(1, 1)
    posting.rig.registers.close()
    assert posting.arrived == b"\1"


# The next exit.


def test_an_exit_that_c_would_answer_is_told_of_once_if_asked_for(posting: Posting) -> None:
    told: list[str] = []
    posting.rig.guest.vcpu.call_at_exit(lambda: told.append("exit"))
    event = posting.write(1, 3)
    assert isinstance(event, PortWrite)
    assert (event.port, event.data) == (0x60, b"\1")
    assert told == ["exit"]
    assert is_report(posting.rig.guest.run())
    assert told == ["exit"]
    posting.rig.registers.hand_over()
    assert posting.arrived == b"\1\1"


def test_a_kick_is_no_such_exit(posting: Posting) -> None:
    told: list[str] = []
    vcpu = posting.rig.guest.vcpu
    vcpu.call_at_exit(lambda: told.append("exit"))
    vcpu.kick()
    assert isinstance(vcpu.run(), Interrupted)
    assert told == []
    assert not is_report(posting.write(1, 1))
    assert told == ["exit"]
