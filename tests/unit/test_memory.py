"""Guest RAM: every access is wholly inside a region or an error."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm import layout
from vmm.errors import GuestMemoryError, HostError
from vmm.memory import GuestMemory

SIZE = 1 << 20
#: More than fits below the hole. The pages are only made when they are touched.
SPLIT_SIZE = layout.LOW_RAM_END + SIZE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture
def split() -> Iterator[GuestMemory]:
    memory = GuestMemory(SPLIT_SIZE)
    yield memory
    memory.close()


def test_ram_starts_as_zeroes_and_keeps_what_is_written(memory: GuestMemory) -> None:
    assert memory.read(0, 16) == bytes(16)
    memory.write(100, b"hello")
    assert memory.read(99, 7) == b"\0hello\0"


def test_numbers_are_little_endian(memory: GuestMemory) -> None:
    memory.write(0x100, bytes.fromhex("88 77 66 55 44 33 22 11"))
    assert memory.load_u16(0x100) == 0x7788
    assert memory.load_u32(0x100) == 0x5566_7788
    assert memory.load_u64(0x100) == 0x1122_3344_5566_7788
    memory.store_u16(0x200, 0x0102)
    memory.store_u32(0x202, 0x0304_0506)
    memory.store_u64(0x206, 0x0708_090A_0B0C_0D0E)
    assert memory.read(0x200, 14).hex() == "0201060504030e0d0c0b0a090807"


_WATCH = """
int watch(volatile unsigned short *at, unsigned short only, long times)
{
    while (times && *at == only)
        times--;
    return times != 0;
}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc: only a tight loop can see it")
def test_a_number_is_stored_at_once(memory: GuestMemory, tmp_path: Path) -> None:
    """VIRTIO 1.2 §2.7.8: a driver may look at an index at any time, so nothing may ever be there but the old value or
    the new."""
    (tmp_path / "watch.c").write_text(_WATCH)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", "watch.so", "watch.c"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "watch.so"))
    memory.store_u16(0, 0x1234)
    seen: list[int] = []
    address = ctypes.c_void_p(memory.regions[0][2])
    watcher = threading.Thread(target=lambda: seen.append(library.watch(address, 0x1234, ctypes.c_long(400_000_000))))
    watcher.start()
    while watcher.is_alive():
        memory.store_u16(0, 0x1234)
    assert seen == [0]


def test_a_view_is_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.view(0x1000, 4)
    view[:] = b"view"
    assert memory.read(0x1000, 4) == b"view"
    memory.write(0x1000, b"back")
    assert bytes(view) == b"back"
    view.release()


def test_the_last_byte_is_there_and_the_next_is_not(memory: GuestMemory) -> None:
    memory.write(SIZE - 1, b"x")
    assert memory.read(SIZE - 1, 1) == b"x"
    assert memory.contains(SIZE - 1, 1)
    assert not memory.contains(SIZE, 1)


BAD = [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (-1, 2), (0, SIZE + 1), (1 << 64, 1), ((1 << 64) - 1, 2), (5, -1)]


@pytest.mark.parametrize(("gpa", "size"), BAD)
def test_nothing_is_clipped_and_nothing_wraps(memory: GuestMemory, gpa: int, size: int) -> None:
    for access in (memory.read, memory.view):
        with pytest.raises(GuestMemoryError) as raised:
            access(gpa, size)
        assert (raised.value.gpa, raised.value.size) == (gpa, size)
    assert not memory.contains(gpa, size)


def test_a_write_that_does_not_fit_writes_nothing(memory: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        memory.write(SIZE - 4, b"12345")
    assert memory.read(SIZE - 4, 4) == bytes(4)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_numbers_that_do_not_fit_are_errors_too(memory: GuestMemory, width: int) -> None:
    load: Callable[[int], int] = getattr(memory, f"load_u{8 * width}")
    store: Callable[[int, int], None] = getattr(memory, f"store_u{8 * width}")
    assert load(SIZE - width) == 0
    for gpa in (SIZE - width + 1, SIZE, -width, layout.ABOVE_4G):
        with pytest.raises(GuestMemoryError):
            load(gpa)
        with pytest.raises(GuestMemoryError):
            store(gpa, 1)


def test_ram_above_the_hole_is_at_4_gib(split: GuestMemory) -> None:
    split.write(layout.ABOVE_4G, b"high")
    split.write(layout.LOW_RAM_END - 3, b"low")
    assert split.read(layout.ABOVE_4G, 4) == b"high"
    assert split.read(layout.LOW_RAM_END - 3, 3) == b"low"
    assert split.contains(layout.ABOVE_4G + SIZE - 1, 1)


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (layout.LOW_RAM_END, 1),
        (layout.LOW_RAM_END - 1, 2),
        (layout.ABOVE_4G - 1, 2),
        (layout.ABOVE_4G + SIZE, 1),
        (layout.LOW_RAM_END - 1, layout.ABOVE_4G - layout.LOW_RAM_END + 2),
    ],
)
def test_the_hole_is_no_ram_and_no_access_spans_it(split: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(GuestMemoryError):
        split.view(gpa, size)
    assert not split.contains(gpa, size)


def test_the_regions_host_addresses_are_those_of_their_bytes(split: GuestMemory) -> None:
    assert [(gpa, size) for gpa, size, _ in split.regions] == list(layout.ram_regions(SPLIT_SIZE))
    for gpa, _, address in split.regions:
        split.write(gpa, b"here")
        assert ctypes.string_at(address, 4) == b"here"


def test_no_ram_without_memory() -> None:
    with pytest.raises(HostError, match="ask for less memory"):
        GuestMemory(1 << 62)


def test_the_fence_can_be_taken_again(memory: GuestMemory) -> None:
    memory.fence()
    memory.fence()
