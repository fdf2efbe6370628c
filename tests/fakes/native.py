"""The native ring behind the interface of the Python one, so that both take the same tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmm.virtio.chain import DescriptorChain
from vmm.virtio.queue import VirtQueue

if TYPE_CHECKING:
    from vmm.memory import GuestMemory
    from vmm.native._engine import CData

try:
    from vmm.native._engine import ffi, lib
    from vmm.virtio import native
except ImportError:
    missing = "the native engine is not built: pip install -e ."
else:
    missing = ""

ENGINES = ["python", pytest.param("native", marks=pytest.mark.skipif(bool(missing), reason=missing))]
#: Parametrizes a test over the engines.
both_engines = pytest.mark.parametrize("engine", ENGINES)


class NativeQueue:
    """`VirtQueue`'s methods by `struct ring`."""

    def __init__(self, memory: GuestMemory, queue: VirtQueue) -> None:
        self._memory = memory
        regions = native.regions(memory)
        ring = lib.ring_open(native.ring_config(queue), regions, len(regions))
        assert ring != ffi.NULL
        self._ring = ffi.gc(ring, lib.ring_close)
        self._iov = ffi.new("struct iovec[]", lib.ring_pieces(ring))

    @property
    def next_avail(self) -> int:
        return lib.ring_next_avail(self._ring)

    @property
    def next_used(self) -> int:
        return lib.ring_next_used(self._ring)

    def pop(self) -> DescriptorChain | None:
        chain, fault = ffi.new("struct chain *"), ffi.new("struct fault *")
        got = lib.ring_pop(self._ring, chain, self._iov, fault)
        if got < 0:
            raise native.guest_fault(fault)
        if not got:
            return None
        popped = DescriptorChain(chain.head)
        pieces = [self._view(chain.iov[index]) for index in range(chain.count)]
        popped.readable, popped.writable = pieces[: chain.readable], pieces[chain.readable :]
        popped.readable_bytes, popped.writable_bytes = chain.readable_bytes, chain.writable_bytes
        return popped

    def _view(self, iovec: CData) -> memoryview:
        address = int(ffi.cast("uintptr_t", iovec.iov_base))
        for gpa, size, host in self._memory.regions:
            if host <= address < host + size:
                return self._memory.view(gpa + address - host, iovec.iov_len)
        raise AssertionError(f"{address:#x} is no guest RAM")

    def unpop(self) -> None:
        lib.ring_unpop(self._ring)

    def push(self, head: int, written: int) -> None:
        lib.ring_push(self._ring, head, written)

    def publish(self) -> bool:
        return lib.ring_publish(self._ring)

    def suppress_kicks(self) -> None:
        lib.ring_suppress_kicks(self._ring)

    def want_kicks(self) -> bool:
        fault = ffi.new("struct fault *")
        more = lib.ring_want_kicks(self._ring, fault)
        if more < 0:
            raise native.guest_fault(fault)
        return not more
