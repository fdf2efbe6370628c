"""The page walk, against tables built here (Intel SDM 3A §4.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vmm.errors import GuestMemoryError
from vmm.kvm import abi
from vmm.kvm.assist.paging import GuestException, read_linear, walk, write_linear
from vmm.memory import GuestMemory

MIB = 1 << 20
P, W, LARGE, NX = 1, 2, 1 << 7, 1 << 63
LA57 = 1 << 12
HIGH = 0xFFFF_8880_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(MIB)
    yield made
    made.close()


@pytest.fixture
def sregs() -> abi.kvm_sregs:
    return abi.kvm_sregs(cr0=1 << 31 | 1 << 16 | 1, cr3=0x1000, cr4=1 << 5, efer=0xD01)


def mapper(memory: GuestMemory, levels: int = 4) -> Callable[..., None]:
    """A function that maps *linear* to *entry* at *level*, with new tables from 0x1000 on as needed."""
    free = iter(range(0x2000, 0x2_0000, 0x1000))

    def add(linear: int, entry: int, *, level: int = 1, rights: int = P | W) -> None:
        table = 0x1000
        for at in range(levels, level, -1):
            slot = table + (linear >> 9 * at + 3 & 511) * 8
            if not memory.load_u64(slot):
                memory.store_u64(slot, next(free) | rights)
            table = memory.load_u64(slot) & 0xF_FFFF_FFFF_F000
        memory.store_u64(table + (linear >> 9 * level + 3 & 511) * 8, entry)

    return add


@pytest.mark.parametrize(
    ("level", "entry", "offset", "gpa"),
    [
        (1, 0x4_5000 | P | W, 0x678, 0x4_5678),
        (1, 0x4_5000 | P | W | NX, 0x678, 0x4_5678),
        (1, 0x4_5000 | P | W | LARGE, 0x678, 0x4_5678),  # PAT there, no size
        (2, 0x20_0000 | P | W | LARGE, 0x1_2345, 0x21_2345),
        (2, 0x20_1000 | P | W | LARGE, 0x1_2345, 0x21_2345),  # PAT
        (3, 0x4000_0000 | P | W | LARGE, 0x123_4567, 0x4123_4567),
    ],
)
@pytest.mark.parametrize("linear", [0, 0x7FFF_C000_0000, HIGH])
@pytest.mark.parametrize("levels", [4, 5])
def test_pages_of_each_size(  # noqa: PLR0917
    memory: GuestMemory, sregs: abi.kvm_sregs, levels: int, linear: int, level: int, entry: int, offset: int, gpa: int
) -> None:
    sregs.cr4 |= LA57 if levels == 5 else 0
    mapper(memory, levels)(linear, entry, level=level)
    assert walk(memory, sregs, linear + offset) == gpa


@pytest.mark.parametrize(
    ("linear", "la57", "canonical"),
    [
        (1 << 47, False, False),
        (0xFFFF_7FFF_FFFF_FFFF, False, False),
        (1 << 63, False, False),
        (1 << 64, False, False),
        (1 << 47, True, True),
        (1 << 56, True, False),
        (0xFEFF_FFFF_FFFF_FFFF, True, False),
        (0xFF00_0000_0000_0000, True, True),
    ],
)
def test_canonical_addresses(
    memory: GuestMemory, sregs: abi.kvm_sregs, linear: int, la57: bool, canonical: bool
) -> None:
    sregs.cr4 |= LA57 if la57 else 0
    with pytest.raises(GuestException) as caught:
        walk(memory, sregs, linear)
    assert caught.value.vector == (14 if canonical else 13)
    assert caught.value.cr2 == (linear if canonical else None)
    assert caught.value.error_code == 0


@pytest.mark.parametrize("write", [False, True])
def test_a_page_that_is_not_there(memory: GuestMemory, sregs: abi.kvm_sregs, write: bool) -> None:
    mapper(memory)(0x5000, 0x4_5000 | W)
    with pytest.raises(GuestException) as caught:
        walk(memory, sregs, 0x5123, write=write)
    assert (caught.value.vector, caught.value.error_code, caught.value.cr2) == (14, 2 if write else 0, 0x5123)


@pytest.mark.parametrize("where", ["page", "table"])
def test_write_protection(memory: GuestMemory, sregs: abi.kvm_sregs, where: str) -> None:
    """CR0.WP: a supervisor's write needs W at every level; without it, no level is asked."""
    mapper(memory)(0x5000, 0x4_5000 | P | (W if where == "table" else 0), rights=P if where == "table" else P | W)
    assert walk(memory, sregs, 0x5000) == 0x4_5000
    with pytest.raises(GuestException) as caught:
        walk(memory, sregs, 0x5000, write=True)
    assert caught.value.error_code == 3
    sregs.cr0 &= ~(1 << 16)
    assert walk(memory, sregs, 0x5000, write=True) == 0x4_5000


def test_a_table_outside_ram(memory: GuestMemory, sregs: abi.kvm_sregs) -> None:
    memory.store_u64(0x1000, 0xFF_FFFF_F000 | P | W)
    with pytest.raises(GuestMemoryError) as caught:
        walk(memory, sregs, 0)
    assert caught.value.gpa == 0xFF_FFFF_F000
    sregs.cr3 = MIB
    with pytest.raises(GuestMemoryError):
        walk(memory, sregs, 0)


def test_a_table_that_points_to_itself(memory: GuestMemory, sregs: abi.kvm_sregs) -> None:
    memory.write(0x1000, (0x1000 | P | W).to_bytes(8, "little") * 512)
    assert walk(memory, sregs, 0x7FFF_FFFF_F123) == 0x1123


def test_the_pcid_is_no_address(memory: GuestMemory, sregs: abi.kvm_sregs) -> None:
    mapper(memory)(0x5000, 0x4_5000 | P | W)
    sregs.cr3 |= 0xFFF
    assert walk(memory, sregs, 0x5000) == 0x4_5000


def test_access_across_pages(memory: GuestMemory, sregs: abi.kvm_sregs) -> None:
    add = mapper(memory)
    add(0x5000, 0x4_5000 | P | W)
    add(0x6000, 0x4_3000 | P | W)
    write_linear(memory, sregs, 0x5FFD, b"abcdef")
    assert (memory.read(0x4_5FFD, 3), memory.read(0x4_3000, 3)) == (b"abc", b"def")
    assert read_linear(memory, sregs, 0x5FFD, 6) == b"abcdef"


def test_a_write_that_faults_in_its_second_page_leaves_the_first_alone(
    memory: GuestMemory, sregs: abi.kvm_sregs
) -> None:
    mapper(memory)(0x5000, 0x4_5000 | P | W)
    with pytest.raises(GuestException) as caught:
        write_linear(memory, sregs, 0x5FFD, b"abcdef")
    assert caught.value.cr2 == 0x6000
    assert memory.read(0x4_5FFD, 3) == bytes(3)


def test_access_around_the_end_of_the_address_space(memory: GuestMemory, sregs: abi.kvm_sregs) -> None:
    add = mapper(memory)
    add(0xFFFF_FFFF_FFFF_F000, 0x4_5000 | P | W)
    add(0, 0x4_6000 | P | W)
    write_linear(memory, sregs, (1 << 64) - 2, b"abcd")
    assert (memory.read(0x4_5FFE, 2), memory.read(0x4_6000, 2)) == (b"ab", b"cd")
