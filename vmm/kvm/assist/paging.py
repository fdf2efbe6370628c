"""Guest-linear to guest-physical: the page walk of long mode, in software.

It reads only guest RAM through `GuestMemory`, at most five entries, and says what the processor would say: an address
or a page fault. It does not set accessed and dirty bits: Python has no atomic read-modify-write, and another vCPU may
be changing the same entry.
"""

from __future__ import annotations

from vmm.errors import GuestMemoryError
from vmm.kvm import abi
from vmm.memory import GuestMemory

_PRESENT, _WRITE, _LARGE = 1 << 0, 1 << 1, 1 << 7
_FRAME = 0x000F_FFFF_FFFF_F000
_CR0_WP = 1 << 16
_CR4_LA57 = 1 << 12

#: Page-fault error code bits (Intel SDM 3A §4.7).
PF_PRESENT, PF_WRITE, PF_USER, PF_FETCH = 1, 2, 4, 16
VECTOR_GP, VECTOR_PF = 13, 14


class GuestException(Exception):
    """What the guest's own processor would raise: *vector*, its *error_code*, and CR2 for a page fault."""

    def __init__(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        self.vector, self.error_code, self.cr2 = vector, error_code, cr2
        super().__init__(f"exception {vector}")


def walk(memory: GuestMemory, sregs: abi.kvm_sregs, linear: int, *, write: bool = False) -> int:
    """The guest-physical address of *linear* for a supervisor's data access in long mode.

    Raises:
        GuestException: #GP (not canonical) or #PF.
        GuestMemoryError: a page table lies outside guest RAM.
    """
    cr4 = sregs.cr4
    levels = 5 if cr4 & _CR4_LA57 else 4
    sign = linear >> 9 * levels + 11
    if sign not in (0, (1 << 53 - 9 * levels) - 1):
        raise GuestException(VECTOR_GP, 0)
    table = sregs.cr3 & _FRAME
    writable = True
    for level in range(levels, 0, -1):
        shift = 9 * level + 3
        entry = memory.load_u64(table + (linear >> shift & 0x1FF) * 8)
        if not entry & _PRESENT:
            raise GuestException(VECTOR_PF, PF_WRITE if write else 0, linear)
        writable = writable and bool(entry & _WRITE)
        if level == 1 or (entry & _LARGE and level <= 3):
            if write and not writable and sregs.cr0 & _CR0_WP:
                raise GuestException(VECTOR_PF, PF_PRESENT | PF_WRITE, linear)
            page_mask = (1 << shift) - 1
            return entry & _FRAME & ~page_mask | linear & page_mask
        table = entry & _FRAME
    raise AssertionError("a page walk ends at level 1")


def read_linear(memory: GuestMemory, sregs: abi.kvm_sregs, linear: int, size: int) -> bytes:
    """*size* bytes (at most a page) at *linear*, which may straddle two pages.

    Raises:
        GuestException, GuestMemoryError: as `walk`.
    """
    first = min(size, 0x1000 - (linear & 0xFFF))
    data = memory.read(walk(memory, sregs, linear), first)
    if first < size:
        data += memory.read(walk(memory, sregs, linear + first & (1 << 64) - 1), size - first)
    return data


def read_code(memory: GuestMemory, sregs: abi.kvm_sregs, rip: int) -> bytes:
    """The 15 bytes at *rip*, or fewer where the next page is not there.

    Raises:
        GuestException, GuestMemoryError: as `walk`, for the first of them.
    """
    first = min(15, 0x1000 - (rip & 0xFFF))
    code = read_linear(memory, sregs, rip, first)
    try:
        return code + read_linear(memory, sregs, rip + first & (1 << 64) - 1, 15 - first)
    except (GuestException, GuestMemoryError):
        return code


def write_linear(memory: GuestMemory, sregs: abi.kvm_sregs, linear: int, data: bytes) -> None:
    """Store *data* (at most a page) at *linear*: all of it or, on a fault, nothing.

    Raises:
        GuestException, GuestMemoryError: as `walk`.
    """
    first = min(len(data), 0x1000 - (linear & 0xFFF))
    low = walk(memory, sregs, linear, write=True)
    if first < len(data):
        high = walk(memory, sregs, linear + first & (1 << 64) - 1, write=True)
        memory.write(high, data[first:])
    memory.write(low, data[:first])
