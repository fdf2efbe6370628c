"""A snapshot that builds on another has what differs from it, and together they are all of the machine."""

from __future__ import annotations

import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import guest
from tests.kvm.machines import ECHO, Machines
from vmm.errors import ConfigError, HostError
from vmm.machine import Machine
from vmm.snapshot.file import CHAIN_MAX

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def machine(machines: Machines) -> Machine:
    """One that has printed `ready`, and has something in its memory."""
    machine = machines.make(machines.config(ECHO))
    machine.start()
    machines.printed("ready\n")
    machine.pause(wait=True)
    machine._memory.write(4 * MIB, random.Random(1).randbytes(4 * MIB))
    return machine


def path(machines: Machines, name: str) -> str:
    return str(machines.directory / name)


def memory_of(machines: Machines, snapshot: str) -> bytes:
    with closing(machines.opened(snapshot).map()) as memory:
        return memory.read(0, 16 * MIB)


def allocated(file: str) -> int:
    return os.stat(file).st_blocks * 512


def test_with_its_parent_it_is_the_same_as_a_full_one(machines: Machines, machine: Machine) -> None:
    base, increment, full = (path(machines, name) for name in ("base", "increment", "full"))
    machine.snapshot(base)
    machine._memory.write(4 * MIB, bytes(3 * PAGE))  # becomes zeroes
    machine._memory.write(5 * MIB + 100, b"changed")
    machine._memory.write(9 * MIB, b"touched for the first time")
    machine.snapshot(increment, base)
    machine.snapshot(full)
    assert memory_of(machines, increment) == memory_of(machines, full) == machine._memory.read(0, 16 * MIB)


def test_it_has_only_what_has_changed(machines: Machines, machine: Machine) -> None:
    base, increment = path(machines, "base"), path(machines, "increment")
    machine.snapshot(base)
    machine._memory.write(5 * MIB, machine._memory.read(5 * MIB, MIB))  # written to, and the same
    machine._memory.write(6 * MIB, bytes(MIB))
    machine._memory.write(7 * MIB, b"changed")
    machine.snapshot(increment, base)
    assert allocated(base) > 4 * MIB
    assert allocated(increment) < MIB // 4


def test_what_the_guest_writes_is_in_it(machines: Machines) -> None:
    wait, store = guest.inb(0x3FD) + b"\xa8\x01\x74\xf6", b"\xa2" + (3 * MIB).to_bytes(4, "little") + b"\xee"
    turn = wait + guest.inb(0x3F8) + store
    machine = machines.make(
        machines.config(guest.kernel(guest.say("ready\n"), turn, b"\xeb", bytes([254 - len(turn)])))
    )
    machine.start()
    machines.printed("ready\n")
    base, increment = path(machines, "base"), path(machines, "increment")
    machine.snapshot(base)
    machine.type(b"x")
    machines.printed("ready\nx")
    machine.snapshot(increment, base)
    assert memory_of(machines, base)[3 * MIB] == 0
    assert memory_of(machines, increment)[3 * MIB] == ord("x")


def test_a_chain(machines: Machines, machine: Machine) -> None:
    files = [path(machines, f"file{number}") for number in range(4)]
    machine.snapshot(files[0])
    for number in range(1, 4):
        machine._memory.write((4 + number) * MIB, b"%d" % number * PAGE)
        machine.snapshot(files[number], files[number - 1])
    assert memory_of(machines, files[3]) == machine._memory.read(0, 16 * MIB)


@pytest.mark.parametrize("parent", ["base", "other"])
def test_of_a_restored_machine(machines: Machines, machine: Machine, parent: str) -> None:
    base, other, increment = (path(machines, name) for name in ("base", "other", "increment"))
    machine.snapshot(base)
    machine._memory.write(8 * MIB, b"in the other one")
    machine._memory.write(4 * MIB, bytes(MIB))
    machine.snapshot(other)
    snapshot = machines.opened(base)
    again = machines.make(snapshot.config, snapshot)
    again._memory.write(5 * MIB, b"changed")
    again.snapshot(increment, path(machines, parent))
    assert memory_of(machines, increment) == again._memory.read(0, 16 * MIB)


def test_a_full_one_of_a_restored_machine_needs_no_other(machines: Machines, machine: Machine) -> None:
    base, increment, full = (path(machines, name) for name in ("base", "increment", "full"))
    machine.snapshot(base)
    machine._memory.write(5 * MIB, b"changed")
    machine.snapshot(increment, base)
    snapshot = machines.opened(increment)
    machines.make(snapshot.config, snapshot).snapshot(full)
    os.unlink(base)
    os.unlink(increment)
    assert memory_of(machines, full) == machine._memory.read(0, 16 * MIB)


def test_changes_that_are_scattered_become_few_mappings(machines: Machines, machine: Machine) -> None:
    base, increment = path(machines, "base"), path(machines, "increment")
    machine.snapshot(base)
    for page in range(0, 4096, 2):
        machine._memory.write(page * PAGE, b"changed")
    machine.snapshot(increment, base)
    with closing(machines.opened(increment).map()) as memory:
        assert memory.read(0, 16 * MIB) == machine._memory.read(0, 16 * MIB)
        assert len(Path("/proc/self/maps").read_text().splitlines()) < 2048


def test_both_may_move_together(machines: Machines, machine: Machine) -> None:
    there, elsewhere = machines.directory / "there", machines.directory / "elsewhere"
    there.mkdir()
    machine.snapshot(str(there / "base"))
    machine._memory.write(5 * MIB, b"changed")
    machine.snapshot(str(there / "increment"), str(there / "base"))
    there.rename(elsewhere)
    assert memory_of(machines, str(elsewhere / "increment")) == machine._memory.read(0, 16 * MIB)


def test_read_at_the_start(machines: Machines, machine: Machine) -> None:
    base, increment = path(machines, "base"), path(machines, "increment")
    machine.snapshot(base)
    machine._memory.write(5 * MIB, b"changed")
    machine.snapshot(increment, base)
    with (
        closing(machines.opened(increment, prefault=True).map()) as memory,
        open("/proc/self/pagemap", "rb") as pagemap,
    ):
        pagemap.seek((memory.host_address + 4 * MIB) // PAGE * 8)
        entries = pagemap.read(MIB // PAGE * 2 * 8)
    assert all(entries[7::8][page] & 0x80 for page in range(MIB // PAGE * 2))


# Refusals.


@pytest.fixture
def increment(machines: Machines, machine: Machine) -> str:
    """An incremental snapshot of *machine*, on `base`."""
    base, increment = path(machines, "base"), path(machines, "increment")
    machine.snapshot(base)
    machine._memory.write(5 * MIB, b"changed")
    machine.snapshot(increment, base)
    return increment


def refused(machines: Machines, file: str) -> str:
    with pytest.raises((ConfigError, HostError)) as error:
        machines.opened(file).map()
    return str(error.value)


def test_a_missing_parent_is_refused(machines: Machines, increment: str) -> None:
    base = path(machines, "base")
    os.unlink(base)
    assert refused(machines, increment) == (
        f"{increment}: its parent {base}: cannot be opened: No such file or directory"
    )


def test_another_parent_is_refused(machines: Machines, machine: Machine, increment: str) -> None:
    base = path(machines, "base")
    machine.snapshot(base)
    assert refused(machines, increment) == (
        f"{increment}: its parent {base}: is not the snapshot that {increment} was made from"
    )


@pytest.mark.parametrize("name", ["base", "increment"])
def test_an_altered_memory_is_refused(machines: Machines, increment: str, name: str) -> None:
    file = path(machines, name)
    with open(file, "r+b") as opened:
        opened.seek(PAGE + 5 * MIB)
        opened.write(b"~")
    where = increment if file == increment else f"{increment}: its parent {file}"
    assert refused(machines, increment) == f"{where}: is damaged: the checksum of its memory is wrong"


def test_a_parent_with_another_memory_is_refused(machines: Machines, machine: Machine) -> None:
    base = path(machines, "base")
    machines.make(machines.config(ECHO, memory_bytes=32 * MIB)).snapshot(base)
    with pytest.raises(ConfigError, match=f"--parent {base}: has 32 MiB of memory, not 16"):
        machine.snapshot(path(machines, "increment"), base)


def test_a_parent_is_not_replaced_by_its_child(machines: Machines, machine: Machine, increment: str) -> None:
    with pytest.raises(ConfigError, match="would be replaced, and is needed"):
        machine.snapshot(path(machines, "base"), increment)


def test_a_chain_has_an_end(machines: Machines, machine: Machine) -> None:
    files = [path(machines, f"file{number}") for number in range(CHAIN_MAX + 1)]
    machine.snapshot(files[0])
    for number in range(1, CHAIN_MAX):
        machine.snapshot(files[number], files[number - 1])
    assert memory_of(machines, files[CHAIN_MAX - 1]) == machine._memory.read(0, 16 * MIB)
    with pytest.raises(ConfigError, match="builds on 15 others\n  write a full one: leave --parent out"):
        machine.snapshot(files[CHAIN_MAX], files[CHAIN_MAX - 1])
