"""A machine of a few instructions, written to a file and made again from it: it is the same, but for its clocks."""

from __future__ import annotations

import os
import signal
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import guest
from tests.fakes.native import both_engines
from tests.kvm.machines import ECHO, PATIENCE_S, Machines
from vmm.config import DiskConfig
from vmm.errors import ConfigError, HostError
from vmm.kvm import msrs
from vmm.kvm.assist.probe import host_kind
from vmm.machine import Machine
from vmm.session import Session
from vmm.snapshot.file import VERSION
from vmm.snapshot.writing import Writing

#: What differs between two looks at a machine that stands: time stamps, and what counts from the host's clock.
CLOCKS = {"clock_ns", "time_ns", "now_ns"}


def without_clocks(state: Any, name: str = "") -> Any:
    if isinstance(state, dict):
        return {key: without_clocks(value, key) for key, value in state.items() if key not in CLOCKS}
    if name == "MSRS":
        return {index: value for index, value in struct.iter_unpack("<I4xQ", state) if index != msrs.IA32_TSC}
    if name == "PIT2":  # three channels of 24 bytes, each of which ends with when it was loaded; flags
        return [state[at : at + 16] for at in (0, 24, 48)], state[72:]
    return [without_clocks(value) for value in state] if isinstance(state, list) else state


@both_engines
@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("console", ["serial", "virtio"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_saved_restored_and_saved_again_it_is_the_same(
    machines: Machines, engine: str, transport: str, console: str, cpus: int
) -> None:
    disk = machines.directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = machines.config(
        ECHO, engine=engine, transport=transport, console=console, cpus=cpus, disks=(DiskConfig(path=str(disk)),)
    )
    machine = machines.make(config)
    machine.start()
    machines.printed("ready\n")
    first, second = (str(machines.directory / name) for name in ("first", "second"))
    machine.snapshot(first)
    machines.close()
    machine = machines.make(config, machines.opened(first))
    machine.snapshot(second)
    one, two = machines.opened(first), machines.opened(second)
    assert without_clocks(one.machine) == without_clocks(two.machine)
    with closing(one.map()) as memory, closing(two.map()) as again:
        assert memory.read(0, 16 << 20) == again.read(0, 16 << 20)


def test_the_machine_itself_goes_on(machines: Machines) -> None:
    machine = machines.make(machines.config(ECHO))
    machine.start()
    machines.printed("ready\n")
    machine.snapshot(str(machines.directory / "snap"))
    assert machine.type(b"x")
    machines.printed("ready\nx")


def test_what_was_restored_goes_on(machines: Machines, taken: str) -> None:
    snapshot = machines.opened(taken)
    machine = machines.make(snapshot.config, snapshot)
    machine.start()
    assert machine.type(b"y")
    machines.printed("y")


def test_a_paused_machine_stays_paused(machines: Machines) -> None:
    machine = machines.make(machines.config(ECHO))
    machine.start()
    machines.printed("ready\n")
    machine.pause(wait=True)
    machine.snapshot(str(machines.directory / "snap"))
    machine.type(b"z")
    time.sleep(0.1)
    machines.printed("ready\n")
    machine.resume()
    machines.printed("ready\nz")


def test_a_machine_that_has_ended_is_refused(machines: Machines) -> None:
    machine = machines.make(machines.config(guest.kernel(guest.leave(3))))
    machine.start()
    machine.wait(PATIENCE_S)
    with pytest.raises(HostError, match="the guest has ended"):
        machine.snapshot(str(machines.directory / "snap"))
    assert not (machines.directory / "snap").exists()


def test_the_changes_of_a_restored_machine_stay_its_own(machines: Machines, taken: str) -> None:
    before = Path(taken).read_bytes()
    snapshot = machines.opened(taken)
    machine = machines.make(snapshot.config, snapshot)
    machine.start()
    machine._memory.write(0, b"changed")
    machine.snapshot(str(machines.directory / "next"))
    assert Path(taken).read_bytes() == before
    with closing(machines.opened(str(machines.directory / "next")).map()) as memory:
        assert memory.read(0, 7) == b"changed"


def test_a_restored_guest_reboots_as_a_new_machine(machines: Machines, taken: str) -> None:
    snapshot = machines.opened(taken)
    session = Session(snapshot.config, host_kind(None), say=print, trace=print, cache_dir=None, snapshot=snapshot)
    machine = Machine.build(session)
    machine.close()
    machine = Machine.build(session)
    machine.start()
    machines.printed("ready\n")
    machine.close()
    session.close()


# Refusals.


def refused(machines: Machines, path: str) -> str:
    """Why the snapshot is refused, before anything runs."""
    with pytest.raises((ConfigError, HostError)) as error:
        machines.opened(path).map()
    return str(error.value)


def damaged(path: str, at: int, data: bytes) -> str:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def test_no_file_is_refused(machines: Machines) -> None:
    assert "cannot be opened: No such file" in refused(machines, str(machines.directory / "nothing"))


def test_another_file_is_refused(machines: Machines) -> None:
    assert "is no snapshot of pyvmm" in refused(machines, "/etc/passwd")


def test_a_truncated_one_is_refused(machines: Machines, taken: str) -> None:
    os.truncate(taken, os.path.getsize(taken) - 1)
    assert "is damaged: it has" in refused(machines, taken)


def test_another_version_is_refused(machines: Machines, taken: str) -> None:
    assert f"is a snapshot of version 77, not {VERSION}" in refused(machines, damaged(taken, 16, b"\x4d"))


def test_an_altered_state_is_refused(machines: Machines, taken: str) -> None:
    assert "the checksum of its state" in refused(machines, damaged(taken, os.path.getsize(taken) - 9, b"~"))


def test_an_altered_memory_is_refused(machines: Machines, taken: str) -> None:
    assert "the checksum of its memory" in refused(machines, damaged(taken, 4096 + guest.LOAD, b"~"))


def test_a_copy_is_verified_and_taken(machines: Machines, taken: str) -> None:
    os.utime(taken)
    machines.opened(taken).map().close()


def test_another_processor_is_refused(machines: Machines, taken: str) -> None:
    snapshot = machines.opened(taken)
    cpuid = bytearray(snapshot.machine["vcpus"][0]["CPUID"])
    cpuid[20] ^= 1
    snapshot.machine["vcpus"][0]["CPUID"] = bytes(cpuid)
    with pytest.raises(HostError, match=r"is of another processor.*CPUID differs in leaf 0x0, 0"):
        machines.make(snapshot.config, snapshot)


def test_other_devices_are_refused(machines: Machines, taken: str) -> None:
    snapshot = machines.opened(taken)
    config = machines.config(ECHO, console="virtio")
    with pytest.raises(HostError, match="has the devices"):
        machines.make(config, snapshot)


def test_a_changed_disk_is_refused(machines: Machines) -> None:
    disk = machines.directory / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = machines.config(ECHO, disks=(DiskConfig(path=str(disk)),))
    path = str(machines.directory / "snap")
    machines.make(config).snapshot(path)
    snapshot = machines.opened(path)
    snapshot.check_disks(config)
    disk.write_bytes(b"x" + bytes((1 << 20) - 1))
    with pytest.raises(ConfigError, match="has changed since the snapshot"):
        snapshot.check_disks(config)


# What goes wrong while it is written.


def test_a_full_disk_leaves_the_old_one(machines: Machines, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(taken).read_bytes()

    def full(_: Writing) -> None:
        raise OSError(28, "No space left on device")

    machine = machines.make(machines.config(ECHO))
    machine.start()
    machines.printed("ready\n")
    monkeypatch.setattr(Writing, "_write_state", full)
    with pytest.raises(HostError, match="No space left on device"):
        machine.snapshot(taken)
    assert Path(taken).read_bytes() == before
    assert machine.type(b"x")
    machines.printed("ready\nx")


def test_one_that_is_killed_while_writing_leaves_nothing(
    machines: Machines, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = set(os.listdir(machines.directory))
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Writing, "_name", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        machine = machines.make(machines.config(guest.kernel(guest.POWER_OFF)))
        machine.snapshot(taken)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert set(os.listdir(machines.directory)) == there
    snapshot = machines.opened(taken)
    assert machines.make(snapshot.config, snapshot).description == f"goes on from {taken}"
