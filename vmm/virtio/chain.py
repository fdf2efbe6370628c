"""Descriptor chains: what the driver says about one buffer, checked as a whole before anything is done with it."""

from __future__ import annotations

import struct

from vmm.errors import GuestFault
from vmm.virtio.spec import CHAIN_BYTES_MAX, DESCRIPTOR_SIZE, DescFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.memory import GuestMemory

# One descriptor: le64 address, le32 length, le16 flags, le16 next (VIRTIO 1.2 §2.7.5).
_DESCRIPTOR = struct.Struct("<QIHH")
_unpack = _DESCRIPTOR.unpack
_iter_unpack = _DESCRIPTOR.iter_unpack
_NEXT, _WRITE, _INDIRECT = DescFlag.NEXT, DescFlag.WRITE, DescFlag.INDIRECT


class DescriptorError(GuestFault):
    """A descriptor chain breaks a rule of VIRTIO 1.2 §2.7.5."""


class DescriptorChain:
    """One buffer of the driver: its head index, and guest memory to read from and to write to.

    The descriptors were copied once and the views made from the copies, so the guest cannot move them afterwards;
    what the views *show* is guest memory and changes under the reader's eyes.
    """

    __slots__ = ("head", "readable", "readable_bytes", "writable", "writable_bytes")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.readable_bytes = 0
        self.writable_bytes = 0


def parse(memory: GuestMemory, table: int, table_len: int, head: int, *, indirect_max: int | None) -> DescriptorChain:
    """The chain that starts at *head* in the descriptor table of *table_len* entries at the gpa *table*.

    *indirect_max* is the longest indirect table taken, in descriptors; None where INDIRECT_DESC was not negotiated.

    Raises:
        DescriptorError: a loop, an index outside the table, an empty buffer, a writable buffer before a readable
            one, more than 2^32 bytes in all, or an indirect table that is forbidden, nested, empty, too long or not
            the last one.
        GuestMemoryError: a buffer or an indirect table is not (all) guest RAM.
    """
    chain = DescriptorChain(head)
    index = head
    view = memory.view
    for _ in range(table_len):
        if index >= table_len:
            raise DescriptorError(f"descriptor {index} of a table of {table_len}")
        address, length, flags, following = _unpack(memory.read(table + DESCRIPTOR_SIZE * index, DESCRIPTOR_SIZE))
        if flags & _INDIRECT:
            if flags & _NEXT:
                raise DescriptorError(f"descriptor {index} is INDIRECT and has a NEXT")
            _parse_indirect(memory, chain, address, length, indirect_max)
            return _bounded(chain)
        if not length:
            raise DescriptorError(f"descriptor {index} has no length")
        if flags & _WRITE:
            chain.writable.append(view(address, length))
            chain.writable_bytes += length
        elif chain.writable:
            raise DescriptorError(f"descriptor {index} is readable and comes after a writable one")
        else:
            chain.readable.append(view(address, length))
            chain.readable_bytes += length
        if not flags & _NEXT:
            return _bounded(chain)
        index = following
    raise DescriptorError(f"the chain at descriptor {head} loops")


def _parse_indirect(
    memory: GuestMemory, chain: DescriptorChain, address: int, size: int, indirect_max: int | None
) -> None:
    """Add the buffers of the indirect table of *size* bytes at the gpa *address* (VIRTIO 1.2 §2.7.5.3)."""
    if indirect_max is None:
        raise DescriptorError("INDIRECT was not negotiated")
    count, rest = divmod(size, DESCRIPTOR_SIZE)
    if rest or not 0 < count <= indirect_max:
        raise DescriptorError(f"indirect table of {size} bytes")
    table = list(_iter_unpack(memory.read(address, size)))
    index = 0
    view = memory.view
    for _ in range(count):
        if index >= count:
            raise DescriptorError(f"descriptor {index} of an indirect table of {count}")
        address, length, flags, index = table[index]
        if flags & _INDIRECT:
            raise DescriptorError("INDIRECT inside an indirect table")
        if not length:
            raise DescriptorError("an indirect descriptor has no length")
        if flags & _WRITE:
            chain.writable.append(view(address, length))
            chain.writable_bytes += length
        elif chain.writable:
            raise DescriptorError("an indirect descriptor is readable and comes after a writable one")
        else:
            chain.readable.append(view(address, length))
            chain.readable_bytes += length
        if not flags & _NEXT:
            return
    raise DescriptorError("an indirect table loops")


def _bounded(chain: DescriptorChain) -> DescriptorChain:
    if chain.readable_bytes + chain.writable_bytes > CHAIN_BYTES_MAX:
        raise DescriptorError(f"the chain at descriptor {chain.head} has more than 2^32 bytes")
    return chain


def split(views: Sequence[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """*views* cut in two after *count* bytes (the second part is empty where they hold no more)."""
    for index, view in enumerate(views):
        if count < len(view):
            if count == 0:
                return list(views[:index]), list(views[index:])
            return [*views[:index], view[:count]], [view[count:], *views[index + 1 :]]
        count -= len(view)
    return list(views), []


def gather(views: Sequence[memoryview], count: int) -> bytes:
    """A copy of the first *count* bytes of *views*."""
    if len(views[0]) == count:
        return bytes(views[0])
    return b"".join(split(views, count)[0])


def scatter(views: Sequence[memoryview], data: bytes | bytearray | memoryview) -> int:
    """Copy *data* into *views*, as much as they hold; how many bytes that was."""
    done = 0
    for view in views:
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
        if done == len(data):
            break
    return done
