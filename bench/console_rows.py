"""`bench/console`: what a Linux guest's output costs over the serial port and over the virtio console."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import pyvmm
from bench.boot_rows import PROMPT, Image
from bench.command import Bench, in_turn
from bench.errors import BenchError
from bench.report import Row
from bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZE = 1 << 20
_TIMEOUT_S = 900.0
_CLOCK = (
    f"`cat` of {SIZE >> 20} MiB of text in lines of 64 bytes from a disk that is in the guest's page cache, from its "
    "first byte to its last, as they are read from stdout and compared; the micro image, one boot a run"
)


@dataclass(frozen=True)
class _Cat:
    """What one `cat` took: seconds, and the VMM's CPU seconds in them (`Running.cpu_s`)."""

    seconds: float
    cpu_s: float


def lines(size: int) -> bytes:
    """*size* bytes of text, in lines of 64, that differ."""
    return b"".join(
        hashlib.sha256(number.to_bytes(4, "big")).hexdigest()[:63].encode() + b"\n" for number in range(size // 64)
    )


def _cat(text: bytes, command: Sequence[str]) -> _Cat:
    with Running(command) as vmm:
        vmm.wait_for(PROMPT, _TIMEOUT_S)
        vmm.type(b"cat /dev/vdb > /dev/null; echo rea''dy\n")
        vmm.wait_for(rb"ready\r*\n", _TIMEOUT_S)
        vmm.type(b"echo be''gin; cat /dev/vdb\n")
        begun, _ = vmm.wait_for(rb"begin\r*\n", _TIMEOUT_S)
        before = vmm.cpu_s()
        printed = vmm.read(len(text) + text.count(b"\n"), _TIMEOUT_S)
        seconds = time.perf_counter() - begun
        cpu_s = vmm.cpu_s() - before
    if printed.replace(b"\r\n", b"\n") != text:
        raise BenchError(f"{' '.join(command)}: what came is not what the guest printed")
    return _Cat(seconds, cpu_s)


def _in_turn(runs: int, *options: Sequence[str]) -> list[list[_Cat]]:
    image, text = Image("micro"), lines(SIZE)
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as scratch:
        root, data = (os.path.join(scratch, name) for name in ("root.img", "text"))
        image.copy_root(root)
        with open(data, "wb") as file:
            file.write(text)
        guest = [pyvmm.path(), "--kernel", image.kernel, "--disk", f"{root},readonly", "--disk", f"{data},readonly"]
        return in_turn("cat", runs, [[*guest, *own] for own in options], lambda command: _cat(text, command))


def _cat_rows(runs: int) -> list[Row]:
    """The virtio console beside the serial port."""
    virtio, serial = _in_turn(runs, ["--console", "virtio"], [])
    rates = [[SIZE / 1e3 / cat.seconds for cat in side] for side in (virtio, serial)]
    times = [[cat.cpu_s * 1e9 / SIZE for cat in side] for side in (virtio, serial)]
    peer = "pyvmm's serial port"
    return [
        Row("cat over the virtio console", "kB/s", _CLOCK, 1.0, rates[0], peer, rates[1], more_is_better=True),
        Row("CPU time per byte, virtio console", "ns", _CLOCK, 1.0, times[0], peer, times[1]),
    ]


def _serial_rows(runs: int) -> list[Row]:
    """The serial port beside itself with a call of Python for each byte."""
    native, python = _in_turn(runs, [], ["--engine", "python"])
    rates = [[SIZE / 1e3 / cat.seconds for cat in side] for side in (native, python)]
    peer = "--engine python"
    return [Row("cat over the serial port", "kB/s", _CLOCK, 1.0, rates[0], peer, rates[1], more_is_better=True)]


ROWS: dict[str, Callable[[int], list[Row]]] = {"virtio": _cat_rows, "serial": _serial_rows}


def main() -> int:
    """The whole of `bench/console`."""
    return Bench("console", __doc__ or "", ROWS, dict.fromkeys(ROWS, 3)).main()
