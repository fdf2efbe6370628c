"""The long loops of `ci/soak`: they take turns until the time is over, or until something breaks.

A turn works in `build/soak/LOOP`, which is gone when it went well and stays as evidence when it did not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pexpect

from bench import guests, pyvmm
from images.recipe.cache import cache_directory
from tests.fakes import cuts, guest
from tests.guest.linux import Image, LinuxGuest, file_on_disk, file_system_is_clean
from tests.net.namespace import ip, links, network_namespace
from vmm.errors import BackendError, VmmError
from vmm.host.disk.raw import RawDisk

PLACE = os.path.join(pyvmm.REPOSITORY, "build", "soak")
HOST, GUEST = "10.0.0.1", "10.0.0.2"
CARD = ("--net", "bridge=br0")
#: How much of each a turn does, and how long one run of pyvmm may take to end.
BOOTS, KILLS, CUTS, FUZZ_S, LIMIT_S = 100, 20, 50, 15, 30


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


def tiny_boots(place: str) -> int:
    """A guest that says a word and powers off, with a disk and a card."""
    kernel, image = os.path.join(place, "kernel"), new_disk(place)
    with open(kernel, "wb") as file:
        file.write(guest.kernel(guest.say("up\n"), guest.POWER_OFF))
    command = [pyvmm.path(), "--kernel", kernel, "--memory", "16M", "--disk", image, *CARD]
    for _ in range(BOOTS):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, done.stdout) == (0, b"up\n"), done
        nothing_is_left(image)
    return BOOTS


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
    tiny_boots, kills_of_writers, power_cuts, linux_boots, kills_of_linux, seconds_of_fuzzing,
)  # fmt: skip
#: How what is tested tells that it is broken; anything else is this program's own mistake.
BROKEN = (AssertionError, VmmError, subprocess.SubprocessError, pexpect.ExceptionPexpect)


def soak(seconds: float) -> bool:
    """Let the loops take turns; False at the first failure."""
    begun, done = time.monotonic(), dict.fromkeys(LOOPS, 0)
    for loop in itertools.cycle(LOOPS):
        if time.monotonic() - begun > seconds:
            break
        name, place = loop.__name__.replace("_", " "), os.path.join(PLACE, loop.__name__)
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        try:
            done[loop] += loop(place)
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
    options = parser.parse_args()
    os.environ["TMPDIR"] = os.path.join(PLACE, "tmp")
    shutil.rmtree(PLACE, ignore_errors=True)
    os.makedirs(os.environ["TMPDIR"])
    with network_namespace():
        ip("link add br0 type bridge")
        ip(f"address add {HOST}/24 dev br0")
        ip("link set br0 up")
        return 0 if soak(options.hours * 3600 if options.hours else options.minutes * 60) else 1


if __name__ == "__main__":
    sys.exit(main())
