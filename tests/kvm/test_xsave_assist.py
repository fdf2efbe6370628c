"""XSAVE and XRSTOR in ring 0, by the assist or by the processor: the same to a guest (Intel SDM 1 §13.7, §13.8)."""

from __future__ import annotations

import struct

import pytest

from tests.kvm.assisted import Assisted
from tests.kvm.code import mov, registers, start
from vmm.kvm import abi
from vmm.kvm.exits import PortWrite
from vmm.kvm.scratch import EXCEPTION_PORT, REPORT, REPORT_PORT, USER, ScratchGuest

pytestmark = pytest.mark.kvm

OSXSAVE = 1 << 18
X87, SSE, AVX = 1, 2, 4
ALL = X87 | SSE | AVX
XSETBV = mov(1, 0) + mov(0, ALL) + mov(2, 0) + b"\x0f\x01\xd1"
IMAGE, OTHER = USER + 0x1000, USER + 0x2000
IMAGE_BYTES = 832
INIT_MXCSR, FLUSH_TO_ZERO = 0x1F80, 0x8000


def xsave(linear: int, components: int) -> bytes:
    return mov(0, components) + mov(2, 0) + mov(7, linear) + b"\x48\x0f\xae\x27"  # xsave64 [rdi]


def xrstor(linear: int, components: int) -> bytes:
    return mov(0, components) + mov(2, 0) + mov(7, linear) + b"\x48\x0f\xae\x2f"  # xrstor64 [rdi]


def image(components: int, *, mxcsr: int = INIT_MXCSR, compaction: int = 0) -> bytes:
    """An XSAVE area with each byte of its components different from its neighbours."""
    area = bytearray((7 * at + 1) & 0x7F for at in range(IMAGE_BYTES))
    struct.pack_into("<HHBBHQQII", area, 0, 0x37F, 0, 0, 0, 0, 0x1234, 0x5678, mxcsr, 0)
    for register in range(8):
        area[32 + 16 * register + 10 : 48 + 16 * register] = bytes(6)
    area[416:576] = struct.pack("<96xQQ48x", components, compaction)
    return bytes(area)


@pytest.fixture
def assisted(guest: ScratchGuest) -> Assisted:
    return Assisted(guest)


def run(assisted: Assisted, code: bytes, *, cr4: int = OSXSAVE) -> int:
    """The port that *code* ends with: `REPORT_PORT`, or that of an exception."""
    start(assisted.guest, (XSETBV if cr4 else b"") + code + REPORT)
    assisted.guest.vcpu.sregs.cr4 |= cr4
    event = assisted.run()
    assert isinstance(event, PortWrite), event
    return event.port


def test_what_is_restored_is_what_is_saved(assisted: Assisted) -> None:
    memory = assisted.guest.memory
    memory.write(IMAGE, image(ALL))
    assert run(assisted, xrstor(IMAGE, ALL) + xsave(OTHER, ALL)) == REPORT_PORT
    saved = memory.read(OTHER, IMAGE_BYTES)
    # AMD's processors keep the instruction and operand pointers between only while an exception is pending.
    assert saved[:6] == image(ALL)[:6]
    assert saved[24:28] == image(ALL)[24:28]
    assert saved[32:416] == image(ALL)[32:416]
    assert saved[576:] == image(ALL)[576:]
    assert int.from_bytes(saved[512:520], "little") == ALL


def test_restored_registers_are_ring_3s(assisted: Assisted) -> None:
    """`vmovdqu [rdi], ymm1` in ring 3 sees what ring 0 restored."""
    memory, guest = assisted.guest.memory, assisted.guest
    memory.write(IMAGE, image(ALL))
    assert run(assisted, xrstor(IMAGE, ALL)) == REPORT_PORT
    memory.write(USER, mov(7, OTHER) + b"\xc5\xfe\x7f\x0f" + b"\xf4")  # hlt: #GP in ring 3
    guest.start(USER, ring=3)
    guest.vcpu.sregs.cr4 |= OSXSAVE
    event = assisted.run()
    assert isinstance(event, PortWrite)
    assert event.port == EXCEPTION_PORT + 13
    wanted = image(ALL)
    assert memory.read(OTHER, 32) == wanted[176:192] + wanted[592:608]


def test_components_that_are_not_asked_for_are_left_alone(assisted: Assisted) -> None:
    memory = assisted.guest.memory
    memory.write(IMAGE, image(ALL))
    memory.write(OTHER, bytes([0xEE]) * IMAGE_BYTES)
    memory.write(OTHER + 512, bytes(64))
    assert run(assisted, xrstor(IMAGE, ALL) + xsave(OTHER, AVX)) == REPORT_PORT
    saved = memory.read(OTHER, IMAGE_BYTES)
    assert saved[:24] + saved[32:416] == bytes([0xEE]) * (24 + 384)
    assert saved[24:28] == struct.pack("<I", INIT_MXCSR)
    assert saved[576:] == image(ALL)[576:]
    assert saved[512] == AVX


def test_a_component_that_the_image_leaves_out_is_initialized(assisted: Assisted) -> None:
    memory = assisted.guest.memory
    memory.write(IMAGE, image(ALL))
    memory.write(OTHER, image(0, mxcsr=INIT_MXCSR | FLUSH_TO_ZERO))
    assert run(assisted, xrstor(IMAGE, ALL) + xrstor(OTHER, SSE | AVX) + xsave(IMAGE, ALL)) == REPORT_PORT
    saved = memory.read(IMAGE, IMAGE_BYTES)
    assert saved[160:416] == bytes(256)
    assert saved[576:] == bytes(256)
    assert saved[32:160] == image(ALL)[32:160], "x87 was not asked for"
    assert struct.unpack_from("<I", saved, 24)[0] == INIT_MXCSR | FLUSH_TO_ZERO, "MXCSR is loaded all the same"


def test_xgetbv_tells_what_the_guest_enabled(assisted: Assisted) -> None:
    assert run(assisted, mov(1, 0) + b"\x0f\x01\xd0") == REPORT_PORT
    regs = registers(assisted.guest)
    assert (regs[abi.RAX], regs[abi.RDX]) == (ALL, 0)


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        (mov(1, 2) + b"\x0f\x01\xd0", 13),
        (xsave(IMAGE + 8, ALL), 13),
        (xrstor(IMAGE + 8, ALL), 13),
        (xsave(0x0800_0000_0000_0000, ALL), 13),
        (xsave(1 << 40, ALL), 14),
        (xrstor(1 << 40, ALL), 14),
    ],
    ids=["xgetbv of a register that is not", "unaligned", "unaligned", "not canonical", "not mapped", "not mapped"],
)
def test_what_the_processor_refuses(assisted: Assisted, code: bytes, vector: int) -> None:
    assert run(assisted, code) == EXCEPTION_PORT + vector


@pytest.mark.parametrize(
    "bad",
    [image(ALL | 1 << 9), image(ALL, compaction=1), image(ALL, mxcsr=0xFFFF_0000)],
    ids=["a component that is not enabled", "XCOMP_BV without compaction", "reserved bits of MXCSR"],
)
def test_an_image_that_the_processor_refuses(assisted: Assisted, bad: bytes) -> None:
    assisted.guest.memory.write(IMAGE, bad)
    assert run(assisted, xrstor(IMAGE, ALL)) == EXCEPTION_PORT + 13


@pytest.mark.parametrize("code", [xsave(IMAGE, ALL), xrstor(IMAGE, ALL), mov(1, 0) + b"\x0f\x01\xd0"])
def test_without_osxsave_they_are_undefined(assisted: Assisted, code: bytes) -> None:
    assert run(assisted, code, cr4=0) == EXCEPTION_PORT + 6
