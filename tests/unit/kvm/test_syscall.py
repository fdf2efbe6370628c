"""Which page faults are a SYSCALL, and which handlers need no single step."""

from __future__ import annotations

import pytest

from tests.fakes.vcpu import FakeVcpu
from vmm.kvm import msrs
from vmm.kvm.assist.syscall import FaultFrame, SyscallAssist, is_syscall, length_of_plain_start
from vmm.memory import GuestMemory

LSTAR = 0xFFFF_FFFF_8100_0000
IF, TF, DF, RF = 1 << 9, 1 << 8, 1 << 10, 1 << 16
MASK = 0x25_7FD5  # Linux's
GENUINE = {"error_code": 0x15, "rip": LSTAR, "cs": 0x33, "rflags": 2 | RF, "rsp": 0x7FFF_0000, "ss": 0x2B}


@pytest.mark.parametrize(
    ("change", "context", "expected"),
    [
        ({}, {}, True),
        ({"rflags": 2}, {}, True),
        ({"cs": 0x23}, {}, True),
        ({"rflags": 2 | IF}, {}, False),  # a jump: ring 3 cannot clear IF
        ({"rflags": 2 | TF}, {}, False),
        ({"rflags": 2 | DF}, {}, False),
        ({"rip": LSTAR + 1}, {}, False),
        ({"cs": 0x10}, {}, False),  # ring 0
        ({"error_code": 0x14}, {}, False),  # the kernel's entry is not mapped at all
        ({"error_code": 0x11}, {}, False),  # a supervisor's access
        ({"error_code": 0x05}, {}, False),  # a read
        ({"error_code": 0x17}, {}, False),
        ({"error_code": 0x05}, {"nx": False}, True),  # without NX the fetch bit is not told
        ({}, {"nx": False}, False),
        ({}, {"cr2": LSTAR + 8}, False),
        ({}, {"mask": MASK & ~IF}, False),  # nothing could tell it from a jump
        ({}, {"mask": 0}, False),
        ({}, {"lstar": 0}, False),
    ],
)
def test_is_syscall(change: dict[str, int], context: dict[str, int], expected: bool) -> None:
    frame = FaultFrame(**{**GENUINE, **change})
    how = {"cr2": LSTAR, "lstar": LSTAR, "mask": MASK, "nx": True, **context}
    assert is_syscall(frame, how["cr2"], how["lstar"], how["mask"], nx=bool(how["nx"])) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\xf3\x0f\x1e\xfa", (4, False)),  # endbr64
        (b"\xf3\x0f\x1e\xfb", (0, False)),  # endbr32
        (b"\xfc\x90\x90\x90", (1, True)),  # cld
        (b"\x90\xfc\xfc\xfc", (1, False)),
        (b"\x66\x90\x00\x00", (2, False)),
        (b"\x0f\x1f\x00\x00", (3, False)),
        (b"\x0f\x1f\x40\x00", (4, False)),
        (b"\x0f\x1f\x40\x01", (0, False)),
        (b"\x0f\x01\xca\x90", (0, False)),  # clac
        (b"\x50\x50\x50\x50", (0, False)),
        (b"", (0, False)),
    ],
)
def test_plain_starts(code: bytes, expected: tuple[int, bool]) -> None:
    assert length_of_plain_start(code) == expected


def test_a_step_that_is_overtaken_by_a_new_handler_is_forgotten() -> None:
    """The gate changes while the first instruction of the old handler is stepped over: the next trap is no step."""
    memory = GuestMemory(1 << 20)
    try:
        memory.store_u64(0x1000, 0x2003)  # PML4, then a PDPT and a directory with one page of 2 MiB
        memory.store_u64(0x2000, 0x3003)
        memory.store_u64(0x3000, 0x83)
        vcpu = FakeVcpu()
        vcpu.sregs.cr3, vcpu.sregs.idt.base = 0x1000, 0x4000
        vcpu.regs[6] = 0x5000
        memory.write(0x4000 + 14 * 16, b"\x00\x60" + bytes(10))
        assist = SyscallAssist(vcpu.typed(), memory)
        seen = []
        assist.msr_written(msrs.LSTAR, 0x8000)
        seen.append(vcpu.breakpoint)
        memory.write(0x6000, b"\x50")
        assert assist.trapped(0x6000, 1) == "page fault"
        seen.append(vcpu.breakpoint)
        memory.write(0x4000 + 14 * 16, b"\x00\x70" + bytes(10))
        assist.watch_idt()
        assert [*seen, vcpu.breakpoint] == [0x6000, "step", 0x7000]
        assert assist.trapped(0x7000, 1) == "page fault"
    finally:
        memory.close()
