"""Rows of `bench/io` about the VMM itself: exits, start, and what an idle VM costs."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

from bench import guests, pyvmm, qemu, timed
from bench.command import in_turn
from bench.report import Row
from bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.timed import Timed

EXITS = 20_000
_TIMEOUT_S = 60.0
_SETTLE_S = 2.0
_LONG_IDLE_S, _LOOK_S = 25.0, 60.0
#: What of /proc/meminfo is the kernel's own; SecPageTables are those of KVM's guests.
_KERNEL_MEMORY = ("Slab", "KernelStack", "PageTables", "SecPageTables", "VmallocUsed", "Percpu")


def _exits(runs: int, work: str, measure: str, what: str) -> list[Row]:
    with tempfile.NamedTemporaryFile(prefix="bench-disk-") as file:
        file.truncate(1 << 20)
        disks = pyvmm.disk_options(file.name), qemu.disk_options(file.name)
        own, peer = in_turn(work, runs, timed.commands(f"{work} exits={EXITS}", *disks), timed.run)
    clock = f"{EXITS} reads of {what} in ring 0, divided by them; {timed.CLOCK}"
    figures = [[run.seconds * 1e6 / EXITS for run in side] for side in (own, peer)]
    return [Row(measure, "us", clock, 1.0, figures[0], qemu.version(), figures[1])]


def pio(runs: int) -> list[Row]:
    """A PIO exit."""
    return _exits(runs, "exit-pio", "PIO exit", "the UART's scratch register (port 0x3ff)")


def mmio(runs: int) -> list[Row]:
    """An MMIO exit."""
    return _exits(runs, "exit-mmio", "MMIO exit", "the configuration space of a virtio-mmio disk")


def _start_ms(command: Sequence[str]) -> float:
    with Running(command) as vmm:
        return (vmm.wait_for(b"a", _TIMEOUT_S)[0] - vmm.started) * 1e3


def _tiny() -> list[list[str]]:
    kernel = guests.tiny()
    return [pyvmm.command(kernel, timed.MEMORY_MIB), qemu.command(kernel, timed.MEMORY_MIB)]


def start(runs: int) -> list[Row]:
    """Process start to the guest's first byte."""
    own, peer = in_turn("start", runs, _tiny(), _start_ms)
    clock = "from just before the process is spawned until the guest's first serial byte is read from its stdout"
    return [Row("process start to first serial byte", "ms", clock, 1.0, own, qemu.version(), peer)]


# -- idle ------------------------------------------------------------------------------------------------------------


def kernel_memory_mib(meminfo: str) -> float:
    """What the kernel uses itself, by the text of /proc/meminfo."""
    lines = (line.split() for line in meminfo.splitlines())
    return sum(int(words[1]) for words in lines if words[0].rstrip(":") in _KERNEL_MEMORY) / 1024


def _kernel_memory_mib() -> float:
    with open("/proc/meminfo", encoding="ascii") as file:
        return kernel_memory_mib(file.read())


def _one_more_mib(command: Sequence[str]) -> float:
    """What a VM takes where another one idles already."""
    with Running(command) as first:
        first.wait_for(b"a", _TIMEOUT_S)
        time.sleep(_SETTLE_S)
        before = _kernel_memory_mib()
        with Running(command) as second:
            second.wait_for(b"a", _TIMEOUT_S)
            time.sleep(_SETTLE_S)
            return second.pss_mib() + _kernel_memory_mib() - before


def idle_memory(runs: int) -> list[Row]:
    """Memory of one more idle VM."""
    own, peer = in_turn("idle", runs, _tiny(), _one_more_mib)
    clock = (
        f"PSS of a second VM's process and growth of {', '.join(_KERNEL_MEMORY)} in /proc/meminfo, {_SETTLE_S:g} s "
        f"after its first serial byte, both guests idle in HLT with {timed.MEMORY_MIB} MiB"
    )
    return [Row("one more idle VM: PSS and kernel memory", "MiB", clock, 0.5, own, qemu.version(), peer)]


def _wakeups(command: Sequence[str]) -> float:
    with Running(command) as vmm:
        vmm.wait_for(b"a", _TIMEOUT_S)
        time.sleep(_LONG_IDLE_S)
        before = vmm.wakeups()
        time.sleep(_LOOK_S)
        return (vmm.wakeups() - before) / _LOOK_S


def wakeups(runs: int) -> list[Row]:
    """Wake-ups of an idle VM."""
    own = in_turn("wakeups", runs, _tiny()[:1], _wakeups)[0]
    clock = (
        f"voluntary context switches of all threads over {_LOOK_S:g} s, from {_LONG_IDLE_S:g} s after the first serial "
        "byte on, the guest idle in HLT; whether it halted for good is looked for in the first 16 s"
    )
    return [Row("wake-ups of an idle VM", "1/s", clock, 0, own)]


# -- beside a busy thread --------------------------------------------------------------------------------------------


def _p99_ms(run: Timed) -> float:
    return run.answer["p99"] / run.answer["ticks"] * run.seconds * 1e3


def busy(runs: int) -> list[Row]:
    """Two vCPUs exiting at full speed beside a busy Python thread."""
    alone = timed.commands("exit-two", ["--cpus", "2"], [])[0]
    beside, quiet = in_turn("busy", runs, [pyvmm.beside_busy_thread(alone), alone], timed.run)
    clock = f"two vCPUs reading the UART's scratch register in ring 0, a Python thread computing beside; {timed.CLOCK}"
    rates = [[run.rate("exits") for run in side] for side in (beside, quiet)]
    return [
        Row("two vCPUs beside a busy thread: p99 of an exit", "ms", clock, 0.5, list(map(_p99_ms, beside))),
        Row("two vCPUs beside a busy thread: exits", "1/s", clock, 0.45, rates[0], "without it", rates[1],
            more_is_better=True),
    ]  # fmt: skip
