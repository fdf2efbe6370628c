"""Rows of `bench/io`: what goes through virtio-blk and virtio-net, and what CPU time that takes."""

from __future__ import annotations

import functools
import os
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from bench import network, pyvmm, qemu, timed
from bench.command import in_turn
from bench.report import Row
from vmm.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.timed import Timed

_READ_MIB = 256
#: So few that all are dirty when the clock starts: a file system takes far longer to dirty a page than to write it.
_WRITE_MIB = 16
_CPU_CLOCK = (
    "in the same runs, of all the VMM's threads and kernel workers, less the time the guest itself ran; "
    "what the host's network does with a frame as it is sent is included"
)


# -- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def _disk(mib: int) -> Iterator[IO[bytes]]:
    """An image, all of it in the page cache."""
    with tempfile.NamedTemporaryFile(dir=cache_directory(), prefix="bench-disk-") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
        file.flush()
        yield file


def _blk(runs: int, work: str, mib: int) -> list[list[Timed]]:
    with _disk(mib) as image:

        def measure(command: Sequence[str]) -> Timed:
            os.fsync(image.fileno())  # nobody's clock is to pay for what was written before
            return timed.run(command, apart=True)

        commands = timed.commands(work, pyvmm.disk_options(image.name), qemu.disk_options(image.name))
        return in_turn(work, runs, commands, measure)


def _requests(runs: int, work: str, mib: int, measure: str, *, target: float, what: str) -> list[Row]:
    sides = _blk(runs, work, mib)
    clock = f"{what}; {mib} MiB in the page cache, 32 requests under way; {timed.CLOCK}"
    return [
        _more(measure, "1/s", clock, target, sides, by=lambda run: run.rate("requests")),
        _cpu(f"{measure}: CPU time of one", sides, "requests"),
    ]


def random_read(runs: int) -> list[Row]:
    """4 KiB random reads."""
    return _requests(
        runs, "blk-randread", _READ_MIB, "4 KiB random reads", target=1.5, what="cached reads at random places"
    )


def random_write(runs: int) -> list[Row]:
    """4 KiB random writes."""
    return _requests(
        runs, "blk-randwrite", _WRITE_MIB, "4 KiB random writes", target=1.3, what="writes at random places"
    )


def write_flush(runs: int) -> list[Row]:
    """4 KiB random writes, a flush after each 32."""
    what = "32 writes at a time, then, when they are done, a flush; writes are counted"
    return _requests(runs, "blk-flush", _WRITE_MIB, "4 KiB random writes, flushed", target=1.0, what=what)


def sequential_read(runs: int) -> list[Row]:
    """1 MiB sequential reads."""
    sides = _blk(runs, "blk-seqread", _READ_MIB)
    clock = f"cached reads of 1 MiB, one after the other, 4 under way; {timed.CLOCK}"
    return [_more("1 MiB sequential read", "MiB/s", clock, 1.0, sides, by=lambda run: run.rate("requests"))]


# -- network cards ---------------------------------------------------------------------------------------------------


def _net(runs: int, work: str, when_ready: Callable[[], None] | None = None) -> list[list[Timed]]:
    where = network.TAP, network.MAC
    commands = timed.commands(work, pyvmm.net_options(*where), qemu.net_options(*where))
    measure = functools.partial(timed.run, device=network.TAP, apart=True, when_ready=when_ready)
    with network.tap():
        return in_turn(work, runs, commands, measure)


def send(runs: int) -> list[Row]:
    """64-byte frames out."""
    sides = _net(runs, "net-tx")
    clock = f"frames received from the tap, which the host's stack drops at once; {timed.CLOCK}"
    return [
        _more("64-byte frames out", "1/s", clock, 1.5, sides, by=lambda run: run.frames / run.seconds),
        _cpu("64-byte frames out: CPU time of one", sides, "frames"),
    ]


def send_tso(runs: int) -> list[Row]:
    """64 KiB TSO frames out."""
    sides = _net(runs, "net-tso")
    clock = f"bytes received from the tap, which the host's stack drops uncut; {timed.CLOCK}"
    gigabits = 8e-9
    return [
        _more("64 KiB TSO frames out", "Gb/s", clock, 1.0, sides, by=lambda run: run.bytes * gigabits / run.seconds)
    ]


def receive(runs: int) -> list[Row]:
    """64-byte frames in."""
    sides = _net(runs, "net-rx", network.fill)
    clock = f"frames that wait in the tap's queue, {network.QUEUE_FRAMES} of them, as the guest has them; {timed.CLOCK}"
    return [
        _more("64-byte frames in", "1/s", clock, 1.5, sides, by=lambda run: run.rate("frames")),
        _cpu("64-byte frames in: CPU time of one", sides, "frames"),
    ]


# -- rows ------------------------------------------------------------------------------------------------------------


def _more(
    measure: str, unit: str, clock: str, target: float, sides: list[list[Timed]], *, by: Callable[[Timed], float]
) -> Row:
    """A row of which more is better, with the figure that *by* makes of a run."""
    own, peer = (list(map(by, side)) for side in sides)
    return Row(measure, unit, clock, target, own, qemu.version(), peer, more_is_better=True)


def _cpu(measure: str, sides: list[list[Timed]], counted: str) -> Row:
    own, peer = ([run.cpu_us(counted) for run in side] for side in sides)
    return Row(measure, "us", _CPU_CLOCK, 1.0, own, qemu.version(), peer)
