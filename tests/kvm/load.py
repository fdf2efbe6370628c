"""A guest that works with all it has and checks it, written to a file and made again from it in the midst of that."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench import guests, pyvmm
from tests.kvm.machines import Machines
from vmm.config import DiskConfig, MachineConfig, parse_net
from vmm.snapshot.file import CHAIN_MAX

DISK_BYTES = 4 << 20
PATIENCE_S = 120.0


def config(machines: Machines, engine: str) -> MachineConfig:
    """Two processors, a disk, and two cards on one network; see `bench/guest/load.c`."""
    disk = machines.directory / "disk"
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    card = parse_net(f"lan=load{os.getpid()}")
    return machines.config(
        Path(guests.io()).read_bytes(), append=f"work=load {pyvmm.MMIO}", cpus=2, memory_bytes=64 << 20, engine=engine,
        disks=(DiskConfig(path=str(disk), snapshot=True),), nets=(card, card),
    )  # fmt: skip


def done(directory: Path) -> dict[str, int]:
    """How much of each the guest has said that it has done."""
    *lines, _ = (directory / "out").read_text().split("\n")  # the first one may have begun in another machine
    assert not any(line.startswith("failed") for line in lines), lines[-1]
    words = next((line for line in reversed(lines) if line.startswith("did ")), "").split()[1:]
    return {name: int(count) for name, _, count in (word.partition("=") for word in words)}


def more_than(directory: Path, before: dict[str, int]) -> dict[str, int]:
    """Wait until the guest has done more of everything than *before*; how much."""
    deadline = time.monotonic() + PATIENCE_S
    while not (now := done(directory)) or any(now[name] <= count for name, count in before.items()):
        assert time.monotonic() < deadline, f"{now}, and before {before}"
        time.sleep(0.02)
    return now


def survive(machines: Machines, rounds: int, engine: str) -> None:
    """So many rounds of work, snapshot, restore and work; most of the snapshots build on the last."""
    machine = machines.make(config(machines, engine))
    machine.start()
    progress = more_than(machines.directory, {})
    files: list[str] = []
    for number in range(rounds):
        file = str(machines.directory / f"snap{number}")
        machine.snapshot(file, files[-1] if files else "")
        machines.close()
        files.append(file)
        snapshot = machines.opened(file)
        snapshot.check_disks(snapshot.config)
        (machines.directory / "out").unlink()
        machine = machines.make(snapshot.config, snapshot)
        machine.start()
        progress = more_than(machines.directory, progress)
        if len(files) == CHAIN_MAX:
            for old in files:
                os.unlink(old)
            files.clear()
    machines.close()
