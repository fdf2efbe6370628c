"""The assist against the processor: what an instruction does in ring 3, where it is native, the assist does in ring 0.

Intel SDM 2: each instruction's "Operation" and "Flags Affected". Flags that it leaves undefined are not compared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vmm.kvm import abi
from vmm.kvm.assist.decode import GPR
from vmm.kvm.assist.vcpu import VcpuAssist
from vmm.kvm.exits import EmulationFailure, PortWrite
from vmm.kvm.scratch import CODE, EXCEPTION_PORT, REPORT, REPORT_PORT, USER, ScratchGuest
from vmm.kvm.system import Kvm
from vmm.trace import Tally

pytestmark = pytest.mark.kvm

CF, PF, AF, ZF, SF, OF = 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
ALL = CF | PF | AF | ZF | SF | OF
DATA = USER + 0x4000  # within reach of RIP-relative operands of CODE and of USER_CODE
USER_CODE = USER
FS_BASE = 0x40
UNDEFINED_OPCODE, PROTECTION = EXCEPTION_PORT + 6, EXCEPTION_PORT + 13
RSP = 4

#: RPL 3, so that both privilege levels get the same answer; and the same in the guest's GDT as in the host's, which is
#: what ring 3 asks on software KVM: null, ring 0's code and data, ring 3's data and code.
SELECTORS = (0x03, 0x13, 0x1B, 0x2B, 0x33)

#: name -> (map, opcode, mandatory prefix, flags to compare)
LEGACY = {
    "popcnt": (1, 0xB8, 0xF3, ALL),
    "crc32 byte": (2, 0xF0, 0xF2, ALL),
    "crc32": (2, 0xF1, 0xF2, ALL),
    "adcx": (2, 0xF6, 0x66, ALL),
    "adox": (2, 0xF6, 0xF3, ALL),
    "lsl": (1, 0x03, 0, ALL),
    "lar": (1, 0x02, 0, ALL),
}
#: The same; the prefix as VEX.pp has it.
VEX = {
    "andn": (2, 0xF2, 0, ALL & ~(AF | PF)),
    "shlx": (2, 0xF7, 1, ALL),
    "shrx": (2, 0xF7, 3, ALL),
    "sarx": (2, 0xF7, 2, ALL),
    "mulx": (2, 0xF6, 3, ALL),
    "rorx": (3, 0xF0, 3, ALL),
}
MAPS = {1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}

words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 31, (1 << 32) - 1, 0x7FFF, 0xFFFF, 0x80]),
)
registers = st.integers(0, 15).filter(lambda number: number != RSP)


class Operand:
    """The r/m operand: ModRM and what follows it, REX's X and B, a segment prefix, and the registers it needs."""

    def __init__(self, tail: bytes, modrm: int, x: int = 0, b: int = 0) -> None:
        self.tail, self.modrm, self.x, self.b = tail, modrm, x, b
        self.needs: dict[int, int] = {}
        self.prefix = b""


@st.composite
def operands(draw: st.DrawFn) -> Operand:
    """A register, or memory at `DATA` by every way of addressing."""
    kind = draw(st.sampled_from(["register", "base", "disp8", "disp32", "sib", "no base", "absolute", "fs", "short"]))
    number = draw(registers)
    low, high = number & 7, number >> 3
    if kind == "register":
        return Operand(b"", 0xC0 | low, b=high)
    if kind == "absolute":
        return Operand(b"\x25" + struct.pack("<i", DATA), 4)
    offset = draw(st.integers(-128, 127))
    if kind in ("sib", "no base"):
        index, scale = draw(registers.filter(lambda other: other != number)), draw(st.integers(0, 3))
        sib = scale << 6 | (index & 7) << 3
        step = draw(st.integers(0, 100))
        if kind == "no base":
            operand = Operand(bytes((sib | 5,)) + struct.pack("<i", DATA - (step << scale)), 4, x=index >> 3)
        else:
            operand = Operand(bytes((sib | low, offset & 0xFF)), 0x44, x=index >> 3, b=high)
            operand.needs[number] = DATA - offset - (step << scale)
        operand.needs[index] = step
        return operand
    sib_byte = b"\x24" if low == RSP else b""
    if kind == "base":
        assume(low != 5)
        operand = Operand(sib_byte, low, b=high)
        operand.needs[number] = DATA
    elif kind == "disp32":
        operand = Operand(sib_byte + struct.pack("<i", offset * 1000), 0x80 | low, b=high)
        operand.needs[number] = DATA - offset * 1000
    else:
        operand = Operand(sib_byte + bytes((offset & 0xFF,)), 0x40 | low, b=high)
        operand.needs[number] = DATA - offset - (FS_BASE if kind == "fs" else 0)
        operand.prefix = {"fs": b"\x64", "short": b"\x67"}.get(kind, b"")
        if kind == "short":
            operand.needs[number] |= 0x5A5A << 32  # cut off by the address size
    return operand


class Processor:
    """Runs one instruction natively in ring 3 and by the assist in ring 0."""

    def __init__(self, guest: ScratchGuest) -> None:
        self.guest = guest
        guest.vcpu.synchronize(abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS | abi.KVM_SYNC_X86_EVENTS)
        self.assist = VcpuAssist(guest.vcpu, guest.memory, Tally())

    def _prepare(self, code: bytes, ring: int, values: list[int], flags: int, memory: bytes) -> None:
        guest = self.guest
        guest.memory.write(DATA - 16, memory)
        at = USER_CODE if ring else CODE
        guest.memory.write(at, code + REPORT)
        guest.start(at, ring=ring, flags=flags)
        guest.vcpu.sregs.fs.base = FS_BASE
        for number, value in enumerate(values):
            if number != RSP:
                guest.vcpu.regs[GPR[number]] = value

    def _results(self) -> tuple[list[int], bytes]:
        regs = self.guest.vcpu.regs
        return [regs[GPR[number]] for number in range(16) if number != RSP], self.guest.memory.read(DATA - 16, 48)

    def native(self, code: bytes, values: list[int], flags: int, memory: bytes) -> tuple[list[int], bytes, int] | None:
        """Registers, memory and flags after it in ring 3; None if the processor does not have it."""
        self._prepare(code, 3, values, flags, memory)
        event = self.guest.run()
        assert isinstance(event, PortWrite), event
        if event.port == UNDEFINED_OPCODE:
            return None
        assert event.port == PROTECTION  # ring 3 may not do the OUT of the report
        frame = struct.unpack("<6Q", self.guest.memory.read(self.guest.vcpu.regs[abi.RSP], 48))
        assert frame[1] == USER_CODE + len(code)
        return (*self._results(), frame[3])

    def assisted(self, code: bytes, values: list[int], flags: int, memory: bytes) -> tuple[list[int], bytes, int]:
        """The same in ring 0, by the assist alone: KVM only runs the report after it."""
        self._prepare(code, 0, values, flags, memory)
        self.guest.vcpu.store_registers()  # as they are after an exit: in KVM too
        self.assist.handle(EmulationFailure((code + REPORT).ljust(15, b"\x90")[:15]))
        event = self.guest.run()
        assert isinstance(event, PortWrite)
        assert event.port == REPORT_PORT
        assert self.guest.vcpu.regs[abi.RIP] == CODE + len(code) + 2
        return (*self._results(), self.guest.vcpu.regs[abi.RFLAGS])


@pytest.fixture(scope="module")
def opened() -> Iterator[ScratchGuest]:
    kvm = Kvm()
    with ScratchGuest(kvm) as guest:
        yield guest
    kvm.close()


@pytest.fixture(scope="module")
def processor(opened: ScratchGuest) -> Processor:
    return Processor(opened)


def compare(  # noqa: PLR0917
    processor: Processor,
    code: bytes,
    data: st.DataObject,
    needs: dict[int, int],
    defined: int,
    selector: int | None = None,
) -> None:
    """One example: random registers but for *needs*, random memory but for *selector*, flags equal in *defined*."""
    values = data.draw(st.lists(words, min_size=16, max_size=16))
    for number, value in needs.items():
        values[number] = value & (1 << 64) - 1
    flags = data.draw(st.sampled_from([0, CF, OF, CF | OF, ALL, ZF | SF | AF | PF]))
    memory = struct.pack("<6Q", *data.draw(st.lists(words, min_size=6, max_size=6)))
    if selector is not None:
        memory = memory[:16] + struct.pack("<H", selector) + memory[18:]
    native = processor.native(code, values, flags, memory)
    if native is None:
        pytest.skip("the processor does not have it")
    assisted = processor.assisted(code, values, flags, memory)
    assert assisted[:2] == native[:2]
    assert assisted[2] & defined == native[2] & defined


@pytest.mark.parametrize("name", LEGACY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_legacy_encoded(processor: Processor, name: str, data: st.DataObject) -> None:
    opcode_map, opcode, prefix, defined = LEGACY[name]
    operand, reg = data.draw(operands()), data.draw(registers)
    w, sixteen = data.draw(st.booleans()), data.draw(st.booleans())
    prefixes = bytes(filter(None, (0x66 if sixteen and prefix != 0x66 else 0, prefix)))
    if prefix in (0xF2, 0xF3) and sixteen:
        prefixes = data.draw(st.sampled_from([prefixes, prefixes[::-1]]))
    rex = 0x40 | w << 3 | reg >> 3 << 2 | operand.x << 1 | operand.b
    rex_bytes = bytes((rex,)) if rex != 0x40 or data.draw(st.booleans()) else b""
    modrm = operand.modrm | (reg & 7) << 3
    code = operand.prefix + prefixes + rex_bytes + MAPS[opcode_map] + bytes((opcode, modrm)) + operand.tail
    needs, selector = dict(operand.needs), None
    if name in ("lsl", "lar"):
        selector = data.draw(st.sampled_from(SELECTORS))
        if operand.modrm >= 0xC0:
            needs[operand.modrm & 7 | operand.b << 3] = selector
    compare(processor, code, data, needs, defined, selector)


@pytest.mark.parametrize("name", VEX)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_vex_encoded(processor: Processor, name: str, data: st.DataObject) -> None:
    opcode_map, opcode, prefix, defined = VEX[name]
    operand, reg, vvvv = data.draw(operands()), data.draw(registers), data.draw(registers)
    w = data.draw(st.booleans())
    first = (~reg >> 3 & 1) << 7 | (1 - operand.x) << 6 | (1 - operand.b) << 5 | opcode_map
    last = w << 7 | (0xF if name == "rorx" else ~vvvv & 0xF) << 3 | prefix
    modrm = operand.modrm | (reg & 7) << 3
    code = operand.prefix + bytes((0xC4, first, last, opcode, modrm)) + operand.tail
    if name == "rorx":
        code += bytes((data.draw(st.sampled_from([0, 1, 31, 32, 63, 64, 200])),))
    compare(processor, code, data, operand.needs, defined)


@pytest.mark.parametrize("reg", [4, 5])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_verr_and_verw(processor: Processor, reg: int, data: st.DataObject) -> None:
    selector = data.draw(st.sampled_from(SELECTORS))
    compare(processor, bytes((0x0F, 0x00, 0xC1 | reg << 3)), data, {1: selector}, ALL)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rip_relative(processor: Processor, data: st.DataObject) -> None:
    """With an immediate behind it: RIP is that of the next instruction. Both copies reach a copy of the operand."""
    word = data.draw(words)
    for at in (CODE, USER_CODE):
        processor.guest.memory.store_u64(at + 0x100, word)
    code = b"\xc4\xe3\xfb\xf0\x05" + struct.pack("<i", 0x100 - 10) + b"\x07"  # rorx rax, [rip + …], 7
    compare(processor, code, data, {}, ALL)
