"""One run of the I/O guest. It is timed by the two bytes it writes to COM1 when its work starts and when it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import guests, pyvmm, qemu
from bench.errors import BenchError
from bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEMORY_MIB = 128
CLOCK = "from the byte the guest writes to COM1 as it starts to the byte as it stops, as they are read from stdout"
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Timed:
    """What a run came to: seconds on the clock, the VMM's CPU seconds in them (`Running.cpu_s`), the guest's answer,
    and the frames and bytes that came out of the tap, if one was looked at."""

    seconds: float
    cpu_s: float
    answer: dict[str, int]
    frames: int
    bytes: int

    def rate(self, unit: str) -> float:
        """How many of *unit*, which the guest counts, it did in a second."""
        return self.answer[unit] / self.seconds

    def cpu_us(self, unit: str) -> float:
        """The CPU time for one of them."""
        return self.cpu_s * 1e6 / self.answer[unit]


def commands(work: str, own: Sequence[str], peer: Sequence[str]) -> list[list[str]]:
    """pyvmm and QEMU with the I/O guest, its *work* (and other orders), and the options for its devices."""
    kernel = guests.io()
    return [
        pyvmm.command(kernel, MEMORY_MIB, "--append", f"work={work} {pyvmm.MMIO}", *own),
        qemu.command(kernel, MEMORY_MIB, "-append", f"work={work} {qemu.MMIO}", *peer),
    ]


def run(
    command: Sequence[str], *, device: str = "", apart: bool = False, when_ready: Callable[[], None] | None = None
) -> Timed:
    """One run; frames are counted as they are received from the tap *device*; *apart*: `Running.set_guest_apart`.

    *when_ready* is for a work that says when it is ready and waits for a key: it is called between these.
    """
    with Running(command) as vmm:
        if when_ready is not None:
            vmm.wait_for(b"R", _TIMEOUT_S)
            when_ready()
            vmm.type(b"\n")
        begun, mark = vmm.wait_for(rb"B|failed: [^\r\n]*\r?\n", _TIMEOUT_S)
        if mark[0] != b"B":
            raise _failure(command, mark[0])
        if apart:
            vmm.set_guest_apart()
        before = _reading(vmm, device)
        ended, _ = vmm.wait_for(rb"E", _TIMEOUT_S)
        after = _reading(vmm, device)
        _, answer = vmm.wait_for(rb"(done|failed:) ([^\r\n]*)\r?\n", _TIMEOUT_S)
        if answer[1] != b"done":
            raise _failure(command, answer[0])
    cpu_s, frames, size = (late - early for early, late in zip(before, after, strict=True))
    return Timed(ended - begun, cpu_s, parse_answer(answer[2].decode()), int(frames), int(size))


def parse_answer(line: str) -> dict[str, int]:
    """The names and values of `name=value name=value …`."""
    return {name: int(value) for name, _, value in (word.partition("=") for word in line.split())}


def _reading(vmm: Running, device: str) -> tuple[float, int, int]:
    return (vmm.cpu_s(), *(vmm.received_by_host(device) if device else (0, 0)))


def _failure(command: Sequence[str], said: bytes) -> BenchError:
    return BenchError(f"{' '.join(command)}: the guest says: {said.decode().strip()}")
