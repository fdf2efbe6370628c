"""Whatever is written to memory between snapshots: what is read back from a chain of them is the memory."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.config import MachineConfig
from vmm.memory import GuestMemory
from vmm.snapshot.file import Snapshot
from vmm.snapshot.writing import Writing

PAGE = 4096
PAGES = 4096
CONFIG = MachineConfig(kernel="vmlinux", memory_bytes=PAGES * PAGE)

#: First page, how many, every so many-th, and the byte that they become full of; 0 is what they were at first.
EDITS = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES), st.integers(1, 9), st.integers(0, 2)), max_size=4
)


def write(memory: GuestMemory, path: str, began: Snapshot | None, parent: str) -> None:
    with closing(Writing(path, CONFIG, memory, began, parent)) as writing:
        writing.take({}, (), overlays=False)
        writing.finish()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(EDITS, st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_what_is_read_is_what_was_there(steps: list[tuple[list[tuple[int, int, int, int]], bool, bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        memory, began, last = GuestMemory(CONFIG.memory_bytes), None, ""
        for number, (edits, incremental, restored) in enumerate(steps):
            for first, count, stride, byte in edits:
                for page in range(first, min(first + count, PAGES), stride):
                    memory.write(page * PAGE, bytes([byte]) * PAGE)
            path = os.path.join(directory, str(number))
            write(memory, path, began, last if incremental else "")
            with closing(Snapshot(path)) as snapshot, closing(snapshot.map()) as again:
                assert again.read(0, CONFIG.memory_bytes) == memory.read(0, CONFIG.memory_bytes)
            last = path
            if restored:
                memory.close()
                if began:
                    began.close()
                began = Snapshot(path)
                memory = began.map()
        memory.close()
        if began:
            began.close()
