"""The long loops of `ci/soak`: they take turns until the time is over, or until something breaks.

A turn works in `build/soak/LOOP`, which is gone when it went well and stays as evidence when it did not.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pexpect

from bench import guests, pyvmm
from tests.fakes import cuts, guest
from tests.guest.linux import Image, LinuxGuest, file_on_disk, file_system_is_clean
from tests.kvm.load import survive
from tests.kvm.machines import Machines
from tests.net.namespace import ip, links, network_namespace
from vmm import outcome
from vmm.cache import cache_directory
from vmm.config import MachineConfig, parse_disk, parse_net
from vmm.errors import BackendError, VmmError
from vmm.host.disk.raw import RawDisk
from vmm.kvm.assist.probe import host_kind
from vmm.machine import Machine
from vmm.session import Session

PLACE = os.path.join(pyvmm.REPOSITORY, "build", "soak")
HOST, GUEST = "10.0.0.1", "10.0.0.2"
CARD = ("--net", "bridge=br0")
#: How much of each a turn does, and how long one run of pyvmm may take to end.
BOOTS, ROUNDS, KILLS, CUTS, FUZZ_S, LIMIT_S = 100, 50, 20, 50, 15, 30
#: What there may be more of than after each loop's first turn: of this process, and of the host, which others use too.
MAY_GROW = {"descriptors": 0, "threads": 0, "children": 0, "resident KiB": 4 << 10, "KiB the host lacks": 1 << 20}
CALM_S = 30


def new_disk(place: str) -> str:
    path = os.path.join(place, "disk.img")
    with open(path, "wb") as file:
        file.truncate(64 << 20)
    return path


def left_over(image: str) -> str:
    """What is left of a pyvmm that has ended: a lock, a tap, a file."""
    try:
        RawDisk(image).close()
    except BackendError as error:
        return str(error)
    if links() != {"lo", "br0"}:
        return f"network devices: {links()}"
    return f"files: {files}" if (files := os.listdir(os.environ["TMPDIR"])) else ""


def nothing_is_left(image: str) -> None:
    deadline = time.monotonic() + 5
    while left := left_over(image):  # the kernel closes a killed process's descriptors a moment after it
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def kib(path: str, field: str) -> int:
    """The *field* of a file of /proc."""
    with open(path, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))


def children_of(thread: str) -> list[str]:
    """The processes that this *thread* has started and not waited for."""
    with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
        return file.read().split()


def held() -> dict[str, int]:
    """How much there is of what must not become ever more."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": sum(len(children_of(thread)) for thread in os.listdir("/proc/self/task")),
        "resident KiB": kib("/proc/self/status", "VmRSS"),
        "KiB the host lacks": -kib("/proc/meminfo", "MemAvailable"),
    }


def nothing_creeps(before: dict[str, int]) -> None:
    """There is no more of anything than *before*."""
    deadline = time.monotonic() + CALM_S
    while more := {what: now - before[what] for what, now in held().items() if now - before[what] > MAY_GROW[what]}:
        assert time.monotonic() < deadline, f"there is more and more: {more}, at first {before}"
        time.sleep(0.1)


def tiny_kernel(place: str) -> str:
    """A guest that says a word and powers off."""
    path = os.path.join(place, "kernel")
    with open(path, "wb") as file:
        file.write(guest.kernel(guest.say("up\n"), guest.POWER_OFF))
    return path


def tiny_boots(place: str) -> int:
    """A process for each guest, with a disk and a card."""
    kernel, image = tiny_kernel(place), new_disk(place)
    command = [pyvmm.path(), "--kernel", kernel, "--memory", "16M", "--disk", image, *CARD]
    for _ in range(BOOTS):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, done.stdout) == (0, b"up\n"), done
        nothing_is_left(image)
    return BOOTS


def tiny_machines(place: str) -> int:
    """The same guests one after the other in this process, on both engines."""
    kernel, image, said = tiny_kernel(place), new_disk(place), os.path.join(place, "said")
    for boot in range(BOOTS):
        config = MachineConfig(
            kernel=kernel, memory_bytes=16 << 20, disks=(parse_disk(image),), nets=(parse_net(CARD[1]),),
            serial=f"file:{said}", engine=("native", "python")[boot % 2], timeout_s=LIMIT_S,
        )  # fmt: skip
        boot_here(config)
        with open(said, "rb") as file:
            assert file.read().endswith(b"up\n")
        os.unlink(said)
        nothing_is_left(image)
    return BOOTS


def boot_here(config: MachineConfig) -> None:
    """A machine of *config* from its start to its power-off."""
    cache = cache_directory()
    with closing(Session(config, host_kind(cache), say=print, trace=print, cache_dir=cache)) as session:
        with closing(Machine.build(session)) as machine:
            machine.start()
            end = machine.wait(config.timeout_s)
        assert end.kind == outcome.POWERED_OFF, end


def snapshots(place: str) -> int:
    """A guest that works with all it has goes from file to file, in this process, on both engines."""
    os.environ["PYVMM_RUN"] = os.environ["TMPDIR"]
    for engine in ("native", "python"):
        directory = Path(place, engine)
        directory.mkdir()
        machines = Machines(directory)
        try:
            survive(machines, ROUNDS, engine)
        finally:
            machines.close()
    return 2 * ROUNDS


def kills_of_writers(place: str) -> int:
    """SIGKILL while pyvmm starts, or while its guest does nothing but write and flush."""
    image = new_disk(place)
    for _ in range(KILLS):
        cache, engine = random.choice(("writeback", "none", "unsafe")), random.choice(("native", "python"))
        command = pyvmm.command(
            guests.io(), 128, "--append", f"work=blk-flush ticks={1 << 50} {pyvmm.MMIO}", *CARD,
            "--disk", f"{image.replace(',', ',,')},cache={cache}", "--engine", engine,
        )  # fmt: skip
        with open(os.path.join(place, "output"), "w") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        time.sleep(random.random())
        process.kill()
        code = process.wait()
        assert code < 0, f"it ended by itself, with {code}: {' '.join(command)}"
        nothing_is_left(image)
    assert os.stat(image).st_blocks, "no guest has written anything"
    return KILLS


@contextmanager
def linux(place: str) -> Iterator[tuple[LinuxGuest, str]]:
    """The micro image at its prompt, and its root disk."""
    image = Image(os.path.realpath(os.path.join(cache_directory(), "images", "micro")))
    root = image.copy_root(os.path.join(place, "root.img"))
    address = f"quiet ip={GUEST}::{HOST}:255.255.255.0::eth0:off"
    machine = LinuxGuest("-k", image.kernel(), "-m", "128M", "-d", root, *CARD, "-a", address)
    try:
        machine.wait_for_prompt()
        yield machine, root
    finally:
        machine.close()
        with open(os.path.join(place, "console"), "w", encoding="utf-8") as file:
            file.write(machine.transcript)


def linux_boots(place: str) -> int:
    """From the kernel's start to the power-off, with a file and a ping in between."""
    with linux(place) as (machine, root):
        machine.run("echo soaked > /root/note")
        assert "1 packets received" in machine.run(f"ping -c 1 {HOST}")
        assert machine.power_off() == 0
    assert file_on_disk(root, "/root/note") == b"soaked\n"
    assert file_system_is_clean(root)
    nothing_is_left(root)
    return 1


def kills_of_linux(place: str) -> int:
    """SIGKILL while a Linux writes; what it was told is synced is there."""
    with linux(place) as (machine, root):
        machine.console.sendline(
            "n=0; while :; do n=$((n+1)); seq $n 2000 | dd of=/root/$n conv=fsync 2>/dev/null; echo synced=$n; done"
        )
        machine.expect(r"synced=1\r")
        time.sleep(5 * random.random())
        machine.cut_power()
        synced = [int(n) for n in re.findall(r"synced=(\d+)\r", machine.transcript)]
    nothing_is_left(root)
    # Without a journal what was under way is put right first; 1: something was.
    repaired = subprocess.run(["e2fsck", "-fy", root], capture_output=True, text=True, check=False)
    assert repaired.returncode in {0, 1}, repaired.stdout
    for n in synced:
        assert file_on_disk(root, f"/root/{n}") == "".join(f"{m}\n" for m in range(n, 2001)).encode(), f"file {n}"
    return 1


def power_cuts(place: str) -> int:
    """What was flushed survives on a disk that forgets everything else (`tests.fakes.cuts`)."""
    library, image = os.path.join(place, "dropping.so"), os.path.join(place, "disk.img")
    source = os.path.join(os.path.dirname(cuts.__file__), "dropping.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    environment = {**os.environ, "LD_PRELOAD": library, "DROPPING": image}
    for engine in ("python", "threads"):
        seed = random.randrange(1 << 32)
        command = [sys.executable, "-m", "tests.fakes.cuts", image, engine, "writeback", str(seed), str(CUTS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["kept"] * CUTS), f"{engine}, seed {seed}: {done}"
    return 2 * CUTS


def seconds_of_fuzzing(place: str) -> int:
    """All targets; the finds are in `build/fuzz`."""
    with open(os.path.join(place, "log"), "w") as log:
        subprocess.run([os.path.join("ci", "fuzz"), str(FUZZ_S)], stdout=log, stderr=log, check=True)
    return FUZZ_S


LOOPS: tuple[Callable[[str], int], ...] = (
    tiny_boots, tiny_machines, snapshots, kills_of_writers, power_cuts, linux_boots, kills_of_linux, seconds_of_fuzzing,
)  # fmt: skip
#: How what is tested tells that it is broken; anything else is this program's own mistake.
BROKEN = (AssertionError, VmmError, subprocess.SubprocessError, pexpect.ExceptionPexpect)


def soak(seconds: float, loops: Sequence[Callable[[str], int]]) -> bool:
    """Let *loops* take turns; False at the first failure."""
    begun, done = time.monotonic(), dict.fromkeys(loops, 0)
    before: dict[str, int] = {}
    for loop in itertools.cycle(loops):
        if time.monotonic() - begun > seconds:
            break
        name, place = loop.__name__.replace("_", " "), os.path.join(PLACE, loop.__name__)
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        try:
            done[loop] += loop(place)
            if before:
                nothing_creeps(before)
            elif all(done.values()):
                before = held()
        except BROKEN as error:
            traceback.print_exc()
            print(f"failed: {name}, after {done[loop]} that went well: {error}\nevidence is in {place}")
            return False
        shutil.rmtree(place)
        print(f"{time.monotonic() - begun:7.0f} s: {done[loop]} {name}", flush=True)
    print("all went well: " + ", ".join(f"{count} {loop.__name__.replace('_', ' ')}" for loop, count in done.items()))
    return True


def main() -> int:
    """The exit code of `ci/soak`."""
    parser = argparse.ArgumentParser(prog="ci/soak", description="Run the long loops for so long (10 minutes).")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--minutes", type=float, default=10)
    duration.add_argument("--hours", type=float)
    names = {loop.__name__: loop for loop in LOOPS}
    help_text = f"just this of {', '.join(names)}; may be given again"
    parser.add_argument("--only", action="append", choices=names, metavar="LOOP", help=help_text)
    options = parser.parse_args()
    os.environ["TMPDIR"] = os.path.join(PLACE, "tmp")
    shutil.rmtree(PLACE, ignore_errors=True)
    os.makedirs(os.environ["TMPDIR"])
    with network_namespace():
        ip("link add br0 type bridge")
        ip(f"address add {HOST}/24 dev br0")
        ip("link set br0 up")
        seconds = options.hours * 3600 if options.hours else options.minutes * 60
        return 0 if soak(seconds, [names[name] for name in options.only or names]) else 1


if __name__ == "__main__":
    sys.exit(main())
