"""The assist reads a hostile guest: whatever bytes, registers and tables it finds, it ends, and in one of few ways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.vcpu import FakeVcpu
from vmm.errors import GuestMemoryError
from vmm.kvm import abi, msrs
from vmm.kvm.assist.decode import Instruction, Undecodable
from vmm.kvm.assist.instructions import ASSISTS
from vmm.kvm.assist.paging import GuestException, read_linear, walk, write_linear
from vmm.kvm.assist.probe import SAMPLES
from vmm.kvm.assist.vcpu import VcpuAssist
from vmm.kvm.exits import DebugTrap, EmulationFailure, MsrWrite, TripleFault, Unassisted
from vmm.memory import GuestMemory
from vmm.trace import Tally

RAM = 1 << 16
U64 = st.integers(0, (1 << 64) - 1)
#: Addresses that a hostile table or register would hold: in RAM, at its end, nowhere, not canonical.
near = st.one_of(
    st.integers(0, RAM + 64),
    st.sampled_from([(1 << 64) - 1, (1 << 64) - 8, 1 << 47, (1 << 47) - 1, 0xFFFF_8000_0000_0000, 1 << 63]),
    U64,
)
opcodes = [bytes([*{0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}[map_], opcode]) for map_, opcode in ASSISTS]
prefixes = st.lists(st.sampled_from(b"\x66\xf2\xf3\x48\x40\x4f\x67\x64\x65\xf0"), max_size=3).map(bytes)
rests = st.binary(max_size=9)
code = st.one_of(
    st.binary(max_size=15),
    st.sampled_from(sorted(SAMPLES.values())),
    st.builds(lambda prefix, opcode, rest: prefix + opcode + rest, prefixes, st.sampled_from(opcodes), rests),
    st.builds(lambda rest: b"\xc4" + rest, st.binary(max_size=10)),
)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(RAM)
    yield made
    made.close()


@st.composite
def tables(draw: st.DrawFn) -> dict[int, int]:
    """Page-table entries by address: chains that end anywhere, loop, or leave RAM."""
    return draw(st.dictionaries(st.integers(0, RAM // 8 - 1).map(lambda i: i * 8), near, max_size=12))


def fill(memory: GuestMemory, entries: dict[int, int], filler: int) -> None:
    memory.write(0, filler.to_bytes(8, "little") * (RAM // 8))
    for gpa, value in entries.items():
        memory.store_u64(gpa, value)


@settings(deadline=None)
@given(raw=code, values=st.lists(U64, min_size=18, max_size=18))
def test_decoding(raw: bytes, values: list[int]) -> None:
    """Intel SDM 2A §2.3.11: an instruction has at most 15 bytes."""
    vcpu = FakeVcpu()
    for index, value in enumerate(values):
        vcpu.regs[index] = value
    try:
        ins = Instruction(raw, vcpu.regs)
    except Undecodable:
        return
    assert 1 <= ins.length <= len(raw) <= 15
    assert ins.address is None or 0 <= ins.address < 1 << 64
    assert (ins.rm is None) or 0 <= ins.rm < 16


@settings(deadline=None)
@given(entries=tables(), filler=near, linear=near, cr3=near, la57=st.booleans(), size=st.integers(1, 64))
def test_page_walks(  # noqa: PLR0917
    memory: GuestMemory, entries: dict[int, int], filler: int, linear: int, cr3: int, la57: bool, size: int
) -> None:
    """Every walk ends in at most five steps: at an address, a fault of the guest's, or outside its RAM."""
    fill(memory, entries, filler)
    sregs = FakeVcpu().sregs
    sregs.cr3, sregs.cr4 = cr3, la57 << 12
    try:
        assert 0 <= walk(memory, sregs, linear) < 1 << 52
        assert len(read_linear(memory, sregs, linear, size)) == size
        write_linear(memory, sregs, linear, bytes(size))
    except GuestMemoryError:
        return
    except GuestException as exception:
        seen = exception.vector, exception.cr2 is None
    else:
        return
    assert seen in ((13, True), (14, False))


@settings(deadline=None)
@given(data=st.data())
def test_everything_at_once(memory: GuestMemory, data: st.DataObject) -> None:
    """A vCPU with hostile registers, tables, IDT, GDT and code; exits in any order."""
    fill(memory, data.draw(tables()), data.draw(near))
    vcpu = FakeVcpu()
    assist = VcpuAssist(vcpu.typed(), memory, Tally())
    for _ in range(data.draw(st.integers(1, 6))):
        for index in range(18):
            vcpu.regs[index] = data.draw(near)
        vcpu.sregs.cr3, vcpu.sregs.cr2 = data.draw(near), data.draw(near)
        vcpu.sregs.idt.base, vcpu.sregs.idt.limit = data.draw(near), data.draw(st.integers(0, 0xFFFF))
        vcpu.sregs.gdt.base, vcpu.sregs.gdt.limit = data.draw(near), data.draw(st.integers(0, 0xFFFF))
        vcpu.sregs.fs.base, vcpu.sregs.cr4 = data.draw(near), data.draw(st.sampled_from([1 << 5, 1 << 5 | 1 << 12]))
        event = data.draw(
            st.one_of(
                st.builds(EmulationFailure, code.map(lambda raw: raw.ljust(15, b"\0")[:15])),
                st.builds(EmulationFailure, st.just(b"")),
                st.builds(DebugTrap, st.one_of(near, st.just(_number(vcpu.breakpoint))), st.sampled_from([1, 1 << 14])),
                st.builds(MsrWrite, st.sampled_from([msrs.STAR, msrs.LSTAR, msrs.CSTAR, msrs.SYSCALL_MASK]), near),
            )
        )
        before = vcpu.regs[abi.RIP]
        try:
            assist.handle(event)
        except TripleFault:
            return
        except Unassisted:
            assert vcpu.regs[abi.RIP] == before  # for the report: where the instruction is


def _number(value: int | str | None) -> int:
    return value if isinstance(value, int) else 0
