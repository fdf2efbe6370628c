"""Descriptor chains: what is taken, and every way to break one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.driver import DESC, MIB
from vmm.errors import GuestMemoryError
from vmm.memory import GuestMemory
from vmm.virtio import chain
from vmm.virtio.chain import DescriptorError
from vmm.virtio.spec import DescFlag

NEXT, WRITE, INDIRECT = DescFlag.NEXT, DescFlag.WRITE, DescFlag.INDIRECT
TABLE, INNER, DATA = 0x1000, 0x2000, 0x8000
SIZE = 8


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(MIB)
    yield made
    made.close()


def table(memory: GuestMemory, *descriptors: tuple[int, int, int, int], at: int = TABLE) -> None:
    memory.write(at, b"".join(DESC.pack(*descriptor) for descriptor in descriptors))


def parse(memory: GuestMemory, head: int = 0, indirect_max: int | None = SIZE) -> chain.DescriptorChain:
    return chain.parse(memory, TABLE, SIZE, head, indirect_max=indirect_max)


def test_a_direct_chain(memory: GuestMemory) -> None:
    table(memory, (DATA, 16, NEXT, 2), (0, 0, 0, 0), (DATA + 0x100, 32, NEXT | WRITE, 3), (DATA + 0x200, 1, WRITE, 0))
    memory.write(DATA, bytes(range(16)))
    parsed = parse(memory)
    assert [bytes(view) for view in parsed.readable] == [bytes(range(16))]
    assert (parsed.readable_bytes, parsed.writable_bytes) == (16, 33)
    parsed.writable[1][0] = 7
    assert memory.read(DATA + 0x200, 1) == b"\7"


def test_direct_descriptors_and_then_an_indirect_table(memory: GuestMemory) -> None:
    table(memory, (DATA, 4, NEXT, 5), *[(0, 0, 0, 0)] * 4, (INNER, 48, INDIRECT | WRITE, 0))  # WRITE means nothing here
    table(memory, (DATA + 16, 4, NEXT, 2), (0, 0, 0xFFFF, 0), (DATA + 32, 8, WRITE, 0), at=INNER)
    parsed = parse(memory)
    assert (parsed.readable_bytes, parsed.writable_bytes) == (8, 8)


def test_the_longest_chain(memory: GuestMemory) -> None:
    table(memory, *[(DATA, 1, NEXT if n < SIZE - 1 else 0, n + 1) for n in range(SIZE)])
    assert parse(memory).readable_bytes == SIZE


def test_what_the_descriptors_say_later_does_not_count(memory: GuestMemory) -> None:
    table(memory, (DATA, 16, 0, 0))
    parsed = parse(memory)
    table(memory, (DATA, 0xFFFF_FFFF, 0, 0))
    assert parsed.readable_bytes == len(parsed.readable[0]) == 16


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        ([(DATA, 1, NEXT, 0)], "loops"),
        ([(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)], "loops"),
        ([(DATA, 1, NEXT, SIZE)], "descriptor 8 of a table of 8"),
        ([(DATA, 1, NEXT, 0xFFFF)], "descriptor 65535"),
        ([(DATA, 0, 0, 0)], "no length"),
        ([(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)], "readable and comes after"),
        ([(INNER, 16, INDIRECT | NEXT, 1)], "has a NEXT"),
        ([(INNER, 0, INDIRECT, 0)], "indirect table of 0 bytes"),
        ([(INNER, 24, INDIRECT, 0)], "indirect table of 24 bytes"),
        ([(INNER, 16 * SIZE + 16, INDIRECT, 0)], "indirect table of 144 bytes"),
        ([(INNER, 0xFFFF_FFF0, INDIRECT, 0)], "indirect table of 4294967280 bytes"),
    ],
)
def test_broken_tables(memory: GuestMemory, descriptors: list[tuple[int, int, int, int]], why: str) -> None:
    table(memory, *descriptors)
    with pytest.raises(DescriptorError, match=why):
        parse(memory)


@pytest.mark.parametrize(
    ("descriptors", "why"),
    [
        ([(DATA, 1, NEXT, 0)], "loops"),
        ([(DATA, 1, NEXT, 2)], "descriptor 2 of an indirect table of 2"),
        ([(DATA, 0, 0, 0)], "no length"),
        ([(DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0)], "readable and comes after"),
        ([(INNER, 16, INDIRECT, 0)], "INDIRECT inside"),
    ],
)
def test_broken_indirect_tables(memory: GuestMemory, descriptors: list[tuple[int, int, int, int]], why: str) -> None:
    table(memory, (INNER, 32, INDIRECT, 0))
    table(memory, *descriptors, at=INNER)
    with pytest.raises(DescriptorError, match=why):
        parse(memory)


def test_a_readable_indirect_buffer_after_a_writable_direct_one(memory: GuestMemory) -> None:
    table(memory, (DATA, 1, WRITE | NEXT, 1), (INNER, 16, INDIRECT, 0))
    table(memory, (DATA, 1, 0, 0), at=INNER)
    with pytest.raises(DescriptorError, match="readable and comes after"):
        parse(memory)


def test_indirect_must_be_negotiated(memory: GuestMemory) -> None:
    table(memory, (INNER, 16, INDIRECT, 0))
    with pytest.raises(DescriptorError, match="not negotiated"):
        parse(memory, indirect_max=None)


@pytest.mark.parametrize("gpa", [MIB, MIB - 1, 0xC000_0000, 1 << 32, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("flags", [0, WRITE, INDIRECT])
def test_addresses_outside_ram(memory: GuestMemory, gpa: int, flags: int) -> None:
    table(memory, (gpa, 16, flags, 0))
    with pytest.raises(GuestMemoryError):
        parse(memory)


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_outside_the_table(memory: GuestMemory, head: int) -> None:
    with pytest.raises(DescriptorError):
        parse(memory, head)


def test_no_more_than_4_gib_in_all() -> None:
    big = GuestMemory((2 << 30) + 4096)
    try:
        table(big, (0, 2 << 30, NEXT, 1), (0, 2 << 30, NEXT, 2), (0, 1, 0, 0))
        with pytest.raises(DescriptorError, match="2\\^32"):
            parse(big)
    finally:
        big.close()


def views(*pieces: bytes) -> list[memoryview]:
    return [memoryview(bytearray(piece)) for piece in pieces]


@pytest.mark.parametrize("count", range(8))
def test_split_anywhere(count: int) -> None:
    front, back = chain.split(views(b"ab", b"c", b"defg"), count)
    assert b"".join(front) == b"abcdefg"[:count]
    assert b"".join(back) == b"abcdefg"[count:]
    assert all(front)
    assert all(back)


def test_split_beyond_the_end() -> None:
    assert chain.split(views(b"ab"), 3)[1] == []


def test_gather_and_scatter_over_pieces() -> None:
    assert chain.gather(views(b"ab", b"c", b"defg"), 4) == b"abcd"
    target = views(b"..", b".", b"....")
    assert chain.scatter(target, b"12345") == 5
    assert b"".join(target) == b"12345.."
    assert chain.scatter(target, b"123456789") == 7
    assert chain.scatter(target, b"") == 0
    assert chain.scatter([], b"123") == 0
