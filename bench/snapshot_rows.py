"""`bench/snapshot`: how soon machines go on from a file, beside QEMU's migration; clones; how long a guest stands."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from bench import guests, pyvmm, qemu
from bench.boot_rows import Image
from bench.command import Bench, in_turn, say
from bench.compiled import compiled
from bench.errors import BenchError
from bench.report import Row
from bench.running import Running
from vmm.agent.client import Agent
from vmm.api.client import Client
from vmm.api.warm import Spawned, Warm
from vmm.host.vsock import VSOCK
from vmm.testing import VM, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEMORY_MIB = 128
CLONES = 50
_TIMEOUT_S = 60.0
#: Between two requests to the warm process: it prepares for the next as soon as it has the time.
_SETTLE_S = 0.3
#: In that the guest has changed all that it is to change.
_DIRTY_S = 1.0
#: What a guest does for the first time takes it three times as long: as in `vmm.testing`, that is before the snapshot.
_REHEARSALS = 3
#: In how many clones instructions are counted, and what that means.
_COUNTED = 10
_INSTRUCTIONS = (
    "thousands of its instructions that KVM, where it is software, has interpreted when stats of docs/control.md are "
    "read right after the answer"
)
_PROMPT = b"(qemu) "
_INCOMING = "exec:cat "
_STAMP = rb"stamp=(\d+)\n"

#: How often each row is measured unless `--runs` says otherwise.
RUNS = {"restore": 20, "nonce": 100, "exec": 20, "alive": 3, "pause64": 10, "pause256": 10, "pause-incremental": 10}


# -- a machine of two devices, beside the peer -----------------------------------------------------------------------


@contextmanager
def _scratch() -> Iterator[str]:
    """A directory for files, where VMs have their places too."""
    with (
        tempfile.TemporaryDirectory(prefix="pyvmm-bench-", dir="/var/tmp") as directory,
        patch.dict(os.environ, PYVMM_RUN=os.path.join(directory, "run")),
    ):
        yield directory


def _guest(memory_mib: int, orders: str) -> list[str]:
    return pyvmm.command(guests.io(), memory_mib, "--append", orders, "--name", "guest")


def _take(name: str, path: str) -> None:
    done = subprocess.run([pyvmm.path(), "snapshot", name, path], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"pyvmm snapshot: {done.stderr.strip()}")


def _of_pyvmm(directory: str) -> str:
    """A snapshot of a guest that looks at its time stamp counter without end."""
    path = os.path.join(directory, "snapshot")
    with Running(_guest(MEMORY_MIB, "work=stamp")) as vmm:
        vmm.wait_for(b"a", _TIMEOUT_S)
        _take("guest", path)
    return path


def _of_qemu(directory: str) -> list[str]:
    """QEMU that goes on from a migration file of the same guest."""
    command = qemu.command(guests.io(), MEMORY_MIB, "-append", "work=stamp")
    path, monitor = (os.path.join(directory, name) for name in ("migration", "monitor"))
    with Running([*command, "-monitor", f"unix:{monitor},server=on,wait=off"]) as vmm:
        vmm.wait_for(b"a", _TIMEOUT_S)
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_TIMEOUT_S)
            channel.connect(monitor)
            _read_prompt(channel)
            channel.sendall(f'migrate "exec:cat >{path}"\n'.encode())
            _read_prompt(channel)
    return [*command, "-incoming", _INCOMING + path]


def _read_prompt(monitor: socket.socket) -> None:
    said = b""
    while not said.endswith(_PROMPT):
        said += monitor.recv(4096)


class _Tsc:
    """The time stamp counter, and how long its ticks are."""

    def __init__(self) -> None:
        self._read = ctypes.CDLL(compiled("tsc.so", ["host/tsc.c"], ["-O2", "-shared", "-fPIC"])).tsc
        self._read.restype = ctypes.c_uint64
        begun, ticks = time.perf_counter(), self._read()
        time.sleep(_SETTLE_S)
        self._tick_ms = (time.perf_counter() - begun) * 1e3 / (self._read() - ticks)

    def now(self) -> int:
        """What it says."""
        return int(self._read())

    def ms_since(self, then: int, stamp: bytes) -> float:
        """How long after *then* a guest read *stamp*, which is before now."""
        if not then <= int(stamp) <= self.now():
            raise BenchError("this host's KVM gives guests a time stamp counter of their own")
        return float((int(stamp) - then) * self._tick_ms)


def _new_process_ms(tsc: _Tsc, command: Sequence[str]) -> float:
    then = tsc.now()
    with Running(command) as vmm:
        return tsc.ms_since(then, vmm.wait_for(_STAMP, _TIMEOUT_S)[1][1])


def _warm_ms(tsc: _Tsc, warm: Warm, snapshot: str) -> float:
    time.sleep(_SETTLE_S)
    then = tsc.now()
    with warm.spawn(snapshot) as vm, socket.socket(socket.AF_UNIX) as console:
        console.settimeout(_TIMEOUT_S)
        console.connect(os.path.join(vm.directory, "console.sock"))
        said = b""
        while not (stamp := re.search(_STAMP, said)):
            said += console.recv(4096)
        return tsc.ms_since(then, stamp[1])


def _restore(runs: int) -> list[Row]:
    tsc = _Tsc()
    with _scratch() as directory, Warm() as warm:
        snapshot = _of_pyvmm(directory)
        warm_process: list[str] = []
        ways = [warm_process, [pyvmm.path(), "restore", snapshot], _of_qemu(directory)]

        def measure(command: Sequence[str]) -> float:
            return _new_process_ms(tsc, command) if command else _warm_ms(tsc, warm, snapshot)

        own, new_process, peer = in_turn("restore", runs, ways, measure)
    clock = (
        f"from {{}} until the guest looks at its time stamp counter again, which it does without end; {MEMORY_MIB} "
        "MiB, of which it has touched little"
    )
    spawned = clock.format("just before the process is spawned")
    return [
        Row("restore by a warm process", "ms", clock.format("the request"), 5, own),
        Row(
            "the same beside QEMU", "ms", f"QEMU: -incoming 'exec:cat FILE', {spawned}", 0.25, own, qemu.version(), peer
        ),
        Row("restore in a new process", "ms", spawned, 60, new_process),
    ]


# -- how long a guest stands -----------------------------------------------------------------------------------------


def _pause(name: str, runs: int, noise_mib: int, memory_mib: int, target: float) -> list[Row]:
    samples = []
    with _scratch() as directory, Running(_guest(memory_mib, f"work=beat bytes={noise_mib << 20}")) as vmm:
        vmm.wait_for(b"a", _TIMEOUT_S)
        for turn in range(runs):
            say(f"{name}: {turn} of {runs}")
            path = os.path.join(directory, f"snapshot{turn}")
            samples.append(vmm.longest_silence_while([pyvmm.path(), "snapshot", "guest", path]) * 1e3)
            os.unlink(path)
    clock = (
        f"the longest time without a byte of a guest that prints without end, while pyvmm snapshot runs; {noise_mib} "
        "MiB of random bytes in its memory; the file is in the page cache"
    )
    return [Row(f"pause for a full snapshot, {noise_mib} MiB touched", "ms", clock, target, samples)]


def _pause_incremental(runs: int) -> list[Row]:
    dirty_mib, samples = 4, []
    orders = f"work=beat bytes={64 << 20} dirty={dirty_mib << 20}"
    with _scratch() as directory, Running(_guest(MEMORY_MIB, orders)) as vmm:
        vmm.wait_for(b"a", _TIMEOUT_S)
        base, path = os.path.join(directory, "base"), os.path.join(directory, "increment")
        _take("guest", base)
        command = [pyvmm.path(), "snapshot", "guest", path, "--parent", base]
        for turn in range(runs):
            say(f"pause-incremental: {turn} of {runs}")
            time.sleep(_DIRTY_S)
            samples.append(vmm.longest_silence_while(command) * 1e3)
            if os.stat(path).st_blocks * 512 < dirty_mib << 20:
                raise BenchError("the guest has changed less than it should have")
            os.unlink(path)
    clock = f"as before; {dirty_mib} MiB in single pages are other than in the parent, of 64 MiB"
    return [Row(f"pause for an incremental snapshot, {dirty_mib} MiB dirtied", "ms", clock, 30, samples)]


def _pause64(runs: int) -> list[Row]:
    return _pause("pause64", runs, 64, 128, 100)


def _pause256(runs: int) -> list[Row]:
    return _pause("pause256", runs, 256, 512, 400)


# -- clones of a booted Linux ----------------------------------------------------------------------------------------


class _Clones:
    """A micro image that has booted and run a command, in a snapshot, and a warm process that makes clones of it."""

    def __init__(self, kept: ExitStack) -> None:
        directory = kept.enter_context(_scratch())
        with VM(image=Image("micro").directory, memory=f"{MEMORY_MIB}M") as vm:
            for _ in range(_REHEARSALS):
                vm.run(["true"])
            vm.rest()
            self._snapshot = Snapshot.of(vm, directory).path
        self._warm = kept.enter_context(Warm())

    def clone(self) -> Spawned:
        """One more, on an overlay of its own."""
        return self._warm.spawn(self._snapshot, clone=True)

    def agent(self, vm: Spawned) -> Agent:
        """The agent in the clone *vm*."""
        return Agent(os.path.join(vm.directory, VSOCK), patience_s=_TIMEOUT_S)

    def timed(self, name: str, runs: int, ask: Callable[[Agent], object]) -> list[float]:
        """How long it takes, in ms, from the request for a clone until what it is asked has been answered."""
        samples = []
        for turn in range(runs):
            if not turn % 10:
                say(f"{name}: {turn} of {runs}")
            time.sleep(_SETTLE_S)
            begun = time.perf_counter()
            with self.clone() as vm:
                ask(self.agent(vm))
                samples.append((time.perf_counter() - begun) * 1e3)
        return samples

    def instructions(self, runs: int, ask: Callable[[Agent], object]) -> list[float]:
        """How many thousand instructions of its guest KVM interprets in a clone until it has answered."""
        counts = []
        for _ in range(runs):
            time.sleep(_SETTLE_S)
            with self.clone() as vm, Client(vm.name) as client:
                ask(self.agent(vm))
                counts.append(client.request("stats")["kvm"]["insn_emulation"] / 1e3)
        return counts


def _nonce(runs: int) -> list[Row]:
    with ExitStack() as kept:
        clones = _Clones(kept)
        samples = clones.timed("nonce", runs, lambda agent: agent.hello())
        instructions = clones.instructions(_COUNTED, lambda agent: agent.hello())
    clock = (
        f"from the request until the agent of a new clone of the micro image has repeated a new nonce, p{{}} of "
        f"{runs}; 1 CPU, {MEMORY_MIB} MiB, an overlay of its own over the root disk"
    )
    worst = statistics.quantiles(samples, n=100, method="inclusive")[-1] if runs > 1 else samples[0]
    return [
        Row("clone answers a nonce, p50", "ms", clock.format(50), 60, samples),
        Row("clone answers a nonce, p99", "ms", clock.format(99), 150, [worst]),
        Row("of this, its guest", "k insn", _INSTRUCTIONS, None, instructions),
    ]


def _exec(runs: int) -> list[Row]:
    with ExitStack() as kept:
        clones = _Clones(kept)
        samples = clones.timed("exec", runs, lambda agent: agent.run(["true"], timeout_s=_TIMEOUT_S))
        instructions = clones.instructions(_COUNTED, lambda agent: agent.run(["true"], timeout_s=_TIMEOUT_S))
        guest = []
        with clones.clone() as vm:
            agent = clones.agent(vm)
            for _ in range(runs):
                begun = time.perf_counter()
                agent.run(["true"], timeout_s=_TIMEOUT_S)
                guest.append((time.perf_counter() - begun) * 1e3)
    clock = "from the request until true has ended in a new clone"
    own = (
        "from the request to the agent until true has ended, again and again in one clone: what the guest's fork costs"
    )
    return [
        Row("clone has run true", "ms", clock, 300, samples),
        Row("of this, true itself", "ms", own, None, guest),
        Row("the same", "k insn", _INSTRUCTIONS, None, instructions),
    ]


def _alive(runs: int) -> list[Row]:
    samples = []
    with ExitStack() as kept:
        clones = _Clones(kept)
        for turn in range(runs):
            say(f"alive: {turn} of {runs}")
            with ExitStack() as alive:
                clones.agent(alive.enter_context(clones.clone())).hello()  # what all share is not counted
                before = _available_mib()
                vms = [alive.enter_context(clones.clone()) for _ in range(CLONES)]
                for vm in vms:
                    clones.agent(vm).hello(timeout_s=_TIMEOUT_S)
                samples.append((before - _available_mib()) / CLONES)
                for vm in vms:
                    clones.agent(vm).hello(timeout_s=_TIMEOUT_S)
    clock = f"what {CLONES} clones take of the host's MemAvailable when all have answered, divided by them"
    return [Row("a clone's memory", "MiB", clock, 12, samples)]


def _available_mib() -> float:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) / 1024


ROWS: dict[str, Callable[[int], list[Row]]] = {
    "restore": _restore,
    "nonce": _nonce,
    "exec": _exec,
    "alive": _alive,
    "pause64": _pause64,
    "pause256": _pause256,
    "pause-incremental": _pause_incremental,
}


def main() -> int:
    """The whole of `bench/snapshot`."""
    return Bench("snapshot", __doc__ or "", ROWS, RUNS).main()
