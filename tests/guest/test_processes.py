"""Programs that run at the same time do not get at each other's registers.

A C library picks its memcpy by what the processor says it has, up to AVX-512, and whoever switches between two
programs must keep all of that for them. What is lost shows at once: two programs that start together set up their
thread-local storage by memcpy, each copy interrupted by a page fault, and die of it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.guest.booted import Booted
from vmm.agent.client import Agent
from vmm.api.place import directory

pytestmark = pytest.mark.guest

PAIRS = 8
#: With glibc: musl, which the guests' own programs have, uses no such registers.
PROGRAM = "#include <unistd.h>\nint main(void) { return usleep(100000); }\n"


def test_programs_that_start_together_both_run(large: Booted, tmp_path: Path) -> None:
    """On the same CPU, so that one has to make way for the other."""
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    with closing(large.go_on("--name", "processes")):
        agent = Agent(os.path.join(directory("processes"), "vsock.sock"))
        with program.open("rb") as file:
            agent.put(file, "/program", 0o755)
        pairs = f"for n in $(seq {PAIRS}); do /program | /program || echo failed; done"
        done = agent.run(["taskset", "1", "sh", "-c", pairs], timeout_s=120)
        assert (done.stdout, done.stderr) == (b"", b"")
        agent.close()
