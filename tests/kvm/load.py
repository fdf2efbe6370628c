"""A guest that works with all it has and checks it, written to a file and made again from it in the midst of that."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import guests, pyvmm
from tests.kvm.machines import Machines
from vmm.config import DiskConfig, MachineConfig, parse_net
from vmm.snapshot.file import CHAIN_MAX
from vmm.snapshot.writing import Writing

DISK_BYTES = 4 << 20
PATIENCE_S = 120.0


def config(machines: Machines, engine: str) -> MachineConfig:
    """Two processors, a disk, and two cards on one network; see `bench/guest/load.c`."""
    disk = machines.directory / "disk"
    disk.write_bytes(bytes(DISK_BYTES))
    card = parse_net(f"lan=load{os.getpid()}")
    return machines.config(
        Path(guests.io()).read_bytes(), append=f"work=load {pyvmm.MMIO}", cpus=2, memory_bytes=64 << 20, engine=engine,
        disks=(DiskConfig(path=str(disk)),), nets=(card, card),
    )  # fmt: skip


def done(directory: Path) -> dict[str, int]:
    """How much of each the guest has said that it has done."""
    *lines, _ = (directory / "out").read_text().split("\n")
    assert not any(line.startswith("failed") for line in lines), lines[-1]
    words = lines[-1].split()[1:] if lines else []
    return {name: int(count) for name, _, count in (word.partition("=") for word in words)}


def more_than(directory: Path, before: dict[str, int]) -> dict[str, int]:
    """Wait until the guest has done more of everything than *before*; how much."""
    deadline = time.monotonic() + PATIENCE_S
    while not (now := done(directory)) or any(now[name] <= count for name, count in before.items()):
        assert time.monotonic() < deadline, f"{now}, and before {before}"
        time.sleep(0.02)
    return now


@contextmanager
def disk_copied(disk: str, copy: str) -> Iterator[None]:
    """The *copy* is what the *disk* is at the moment of a snapshot."""
    take = Writing.take

    def copy_and_take(self: Writing, machine: dict[str, Any]) -> None:
        shutil.copyfile(disk, copy)
        take(self, machine)

    Writing.take = copy_and_take  # type: ignore[method-assign]
    try:
        yield
    finally:
        Writing.take = take  # type: ignore[method-assign]


def survive(machines: Machines, rounds: int, engine: str) -> None:
    """So many rounds of work, snapshot, restore and work; most of the snapshots build on the last."""
    present = config(machines, engine)
    machine = machines.make(present)
    machine.start()
    progress = more_than(machines.directory, {})
    files: list[str] = []
    for number in range(rounds):
        file, copy = (str(machines.directory / f"{name}{number}") for name in ("snap", "disk"))
        with disk_copied(present.disks[0].path, copy):
            machine.snapshot(file, files[-1] if files else "")
        os.unlink(present.disks[0].path)
        machines.close()
        files.append(file)
        snapshot = machines.opened(file)
        present = MachineConfig(**(vars(snapshot.config) | {"disks": (DiskConfig(path=copy),)}))
        snapshot.check_disks(present)
        (machines.directory / "out").unlink()
        machine = machines.make(present, snapshot)
        machine.start()
        progress = more_than(machines.directory, progress)
        if len(files) == CHAIN_MAX:
            for old in files:
                os.unlink(old)
            files.clear()
    machines.close()
