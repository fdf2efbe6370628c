"""A VMM as a process: started with a clock, its serial port on pipes, ended whatever happens."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Self

from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STOP_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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
            self.output += self._next(deadline, timeout_s)

    def read(self, size: int, timeout_s: float) -> bytes:
        """The next *size* bytes of the output; more may come with them, for `wait_for`."""
        deadline = time.monotonic() + timeout_s
        found = bytearray(self.output)
        while len(found) < size:
            found += self._next(deadline, timeout_s)
        self.output = bytes(found[size:])
        return bytes(found[:size])

    def longest_silence_while(self, command: Sequence[str]) -> float:
        """The longest time, in seconds, without a byte of a guest that prints without end, while *command* runs."""
        longest, before = 0.0, time.perf_counter()
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                self._next(time.monotonic() + _STOP_S, _STOP_S)
                longest, before = max(longest, self._read_at - before), self._read_at
        if process.returncode:
            raise BenchError(f"{' '.join(command)} fails")
        return longest

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

    def cpu_s(self) -> float:
        """The CPU time that everything but the guest has used so far: of the threads that run no guest all (kernel
        workers are such threads too), of those that do what they spent in the kernel, to 10 ms."""
        total = 0.0
        for task in self._tasks():
            stat, schedstat = _read(f"{task}/stat").rpartition(")")[2].split(), _read(f"{task}/schedstat").split()
            if not (stat and schedstat):  # the thread has just ended
                continue
            system, guest = int(stat[12]), int(stat[40])  # fields 15 and 43 of proc(5)
            total += system / _TICKS_PER_S if guest else int(schedstat[0]) / 1e9
        return total

    def set_guest_apart(self) -> None:
        """Keep the threads that run the guest on the first CPU and all others on the rest, if there are two: else the
        scheduler at times leaves a polling guest and the thread it waits for on one, and another one idle."""
        first, *rest = sorted(os.sched_getaffinity(0))
        if rest:
            for task in self._tasks():
                is_guest = int(_read(f"{task}/stat").rpartition(")")[2].split()[40])
                os.sched_setaffinity(int(os.path.basename(task)), [first] if is_guest else rest)

    def wakeups(self) -> int:
        """How often a thread of the process has gone to sleep by itself so far, so was woken."""
        pattern = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
        found = (pattern.search(_read(f"{task}/status")) for task in self._tasks())
        return sum(int(match[1]) for match in found if match)

    def received_by_host(self, device: str) -> tuple[int, int]:
        """Frames and bytes the network device *device* of the process's namespace has received so far."""
        for line in _read(f"/proc/{self._process.pid}/net/dev").splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == device:
                return int(figures.split()[1]), int(figures.split()[0])
        raise BenchError(f"there is no network device {device}")

    def _next(self, deadline: float, timeout_s: float) -> bytes:
        if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise self._failure(f"did not print what was expected within {timeout_s:g} s")
        data = os.read(self._stdout.fileno(), 1 << 16)
        self._read_at = time.perf_counter()
        if not data:
            raise self._failure("ended early")
        return data

    def _tasks(self) -> Iterator[str]:
        directory = f"/proc/{self._process.pid}/task"
        return (f"{directory}/{task}" for task in os.listdir(directory))

    def _failure(self, what: str) -> BenchError:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        printed = self.output[-2000:].decode(errors="replace").strip()
        return BenchError(f"{' '.join(self._command)} {what}\n{said}\n{printed}".rstrip())


def _read(path: str) -> str:
    """What is in *path*, a file of /proc; nothing if its thread has just ended."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
