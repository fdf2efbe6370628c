"""A VMM as a process: started with a clock, its serial port on pipes, ended whatever happens."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Self

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STOP_S = 10.0


def pyvmm_command() -> str:
    """The `pyvmm` of this checkout's virtual environment, or the one on the PATH."""
    own = os.path.join(REPOSITORY, ".venv", "bin", "pyvmm")
    path = own if os.access(own, os.X_OK) else shutil.which("pyvmm")
    if path is None:
        raise BenchError("there is no pyvmm to measure", fix="make the virtual environment: ci/demo, or pip install .")
    return path


class Running:
    """The process *command*; `started` is the clock (`time.perf_counter`) just before it was spawned."""

    def __init__(self, command: Sequence[str]) -> None:
        # Python's compiled modules are part of an installed pyvmm: let the first run keep them.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._command = command
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self.output = b""
        self._read_at = 0.0
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for file in (self._stdin, self._stdout, self._errors):
            file.close()

    def wait_for(self, pattern: bytes, timeout_s: float) -> tuple[float, re.Match[bytes]]:
        """The clock when the output matched *pattern*, and the match; the output up to its end is dropped."""
        deadline = time.monotonic() + timeout_s
        while True:
            match = re.search(pattern, self.output)
            if match is not None:
                self.output = self.output[match.end() :]
                return self._read_at, match
            if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._failure(f"did not print what was expected within {timeout_s:g} s")
            data = os.read(self._stdout.fileno(), 1 << 16)
            self._read_at = time.perf_counter()
            if not data:
                raise self._failure("ended early")
            self.output += data

    def type(self, text: bytes) -> None:
        """Send *text* to the guest's serial port."""
        self._stdin.write(text)
        self._stdin.flush()

    def pss_mib(self) -> float:
        """The process's proportional set size now (`/proc/PID/smaps_rollup`), touched guest RAM included."""
        with open(f"/proc/{self._process.pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) / 1024
        raise BenchError("the kernel does not tell the PSS")

    def _failure(self, what: str) -> BenchError:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        printed = self.output[-2000:].decode(errors="replace").strip()
        return BenchError(f"{' '.join(self._command)} {what}\n{said}\n{printed}".rstrip())
