"""VMs that a warm process makes from a snapshot: ordinary ones, of which nothing is left when their owner is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import guest
from tests.kvm.machines import PATIENCE_S, Machines
from tests.waiting import until
from vmm import layout
from vmm.api import place
from vmm.api.client import Client, NoAnswer
from vmm.api.warm import Spawned, Warm
from vmm.cli import warm as rehearsal
from vmm.cli.main import ENDING_SIGNALS
from vmm.config import DiskConfig
from vmm.errors import ConfigError, HostError
from vmm.kvm.assist.probe import host_kind
from vmm.kvm.system import Kvm
from vmm.snapshot.file import Snapshot

#: Owns a VM until it is killed, as a process of its own.
OWNER = """
import sys, time
from vmm.api.warm import Warm
warm = Warm()
vm = warm.spawn(sys.argv[1], name="owned")
if sys.argv[2] == "keep":
    vm.keep()
print(warm._process.pid, vm.pid, flush=True)
time.sleep(100)
"""
#: Dies when it has asked for a VM, and has not heard of it yet.
HASTY = """
import os, select, signal, sys
from vmm.api import warm
def die(channel, _):
    select.select([channel], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
warm.Spawned.__init__ = lambda self, channel, wait_s: die(channel, wait_s)
warm.Warm().spawn(sys.argv[1], name="orphan")
"""
#: What of pyvmm and of Python a VM has imported that goes on in a process with all that a warm one has.
LATE = """
import os, signal, sys, time
from vmm.api.client import Client
from vmm.cli import warm
from vmm.cli.options import Options
warm._import_all()
there = set(sys.modules)
def started(place):
    with Client(place.name) as client:
        client.request("status"), client.request("pause")
    print(*sorted(set(sys.modules) - there))
    os.kill(os.getpid(), signal.SIGTERM)
warm.restored(sys.argv[1], Options({"serial": ["quiet"]}), started)
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


def is_gone(pid: int) -> bool:
    """Whether there is no such process; one that only waits for its parent to look is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def echoed(vm: Spawned, text: bytes) -> None:
    """Type *text*, and wait until the guest has sent it back."""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(PATIENCE_S)
        console.connect(os.path.join(vm.directory, place.CONSOLE))
        console.sendall(text)
        seen = b""
        while not seen.endswith(text):
            seen += console.recv(100)


def owner(snapshot: str, how: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process that owns a VM; the ids of its warm process and of the VM."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, snapshot, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first, second = process.stdout.readline().split()
    return process, int(first), int(second)


@pytest.mark.usefixtures("no_others")
def test_it_is_a_vm_with_a_name_that_goes_on(warm: Warm, taken: str) -> None:
    with warm.spawn(taken, name="first") as vm:
        assert (vm.name, vm.directory) == ("first", place.directory("first"))
        assert place.running() == ["first"]
        with Client("first") as client:
            assert client.request("status")["pid"] == vm.pid
        echoed(vm, b"x")


def test_many_go_on_from_one_at_the_same_time(warm: Warm, taken: str) -> None:
    vms = [warm.spawn(taken) for _ in range(5)]
    assert len({vm.name for vm in vms}) == 5
    for number, vm in enumerate(vms):
        echoed(vm, b"%d" % number)
    for vm in vms:
        vm.close()


def test_nothing_is_left_of_one_that_is_closed(warm: Warm, taken: str) -> None:
    vm = warm.spawn(taken)
    vm.close()
    assert is_gone(vm.pid)
    assert not os.path.exists(vm.directory)
    vm.close()


def test_its_end_is_told(warm: Warm, taken: str) -> None:
    with warm.spawn(taken) as vm, Client(vm.name) as client:
        with pytest.raises(NoAnswer, match="has not ended"):
            vm.wait(0.05)
        client.request("kill")
        end = vm.wait(PATIENCE_S)
        assert end.code == 123
        assert is_gone(vm.pid)


def test_what_pyvmm_says_about_a_crash_is_told(warm: Warm, machines: Machines) -> None:
    machine = machines.make(machines.config(guest.kernel(guest.EMPTY_GATES, guest.UNDEFINED)))
    path = str(machines.directory / "snap")
    machine.snapshot(path)
    with warm.spawn(path, serial="null") as vm:
        end = vm.wait(PATIENCE_S)
        assert end.code == 121
        assert "triple fault" in end.said


@pytest.mark.usefixtures("no_others")
def test_one_that_is_killed_has_ended(warm: Warm, taken: str) -> None:
    with warm.spawn(taken) as vm:
        os.kill(vm.pid, signal.SIGKILL)
        assert vm.wait(PATIENCE_S).code == -signal.SIGKILL
        assert place.running() == []


def test_it_ends_with_the_process_that_owns_it(taken: str) -> None:
    process, warm_pid, pid = owner(taken, "own")
    with process:
        process.kill()
    until(lambda: is_gone(pid) and is_gone(warm_pid))
    assert not os.path.exists(place.directory("owned"))


def test_it_ends_with_an_owner_that_has_not_heard_of_it(taken: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HASTY, taken]) as process:
        process.wait(PATIENCE_S)
    until(lambda: not os.path.exists(place.directory("orphan")))


def test_one_that_is_kept_outlives_its_owner(taken: str) -> None:
    process, warm_pid, pid = owner(taken, "keep")
    with process:
        process.kill()
    until(lambda: is_gone(warm_pid))
    with Client("owned") as client:
        client.request("kill")
    until(lambda: is_gone(pid))


def test_it_outlives_the_warm_process_and_another_takes_the_next_request(taken: str) -> None:
    with Warm() as warm, warm.spawn(taken) as first:
        warm._process.kill()
        warm._process.wait()
        with warm.spawn(taken), warm.spawn(taken):  # one by the copy that was at the door, one by another process's
            echoed(first, b"x")


def test_one_that_cannot_start_keeps_nobody_waiting(warm: Warm, taken: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "snapshot")
    with pytest.raises(NoAnswer, match="does not run in time"):
        warm.spawn(str(tmp_path / "snapshot"), wait_s=0.1)
    with warm.spawn(taken) as vm:
        echoed(vm, b"x")
    (tmp_path / "snapshot").write_bytes(b"no snapshot")  # it ends by that


def test_a_vm_is_made_ahead_once() -> None:
    with closing(Kvm()) as kvm:
        kvm.make_ahead()
        with closing(kvm.create_vm()) as first, closing(kvm.create_vm()) as second:
            first.create_irqchip()
            second.create_irqchip()  # another VM: one has no two


def test_its_directory_and_environment_are_the_caller_s(
    warm: Warm, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYVMM_RUN", str(tmp_path / "run"))
    with warm.spawn(os.path.basename(taken), serial="file:printed") as vm:
        assert vm.directory == str(tmp_path / "run" / vm.name)
        echoed(vm, b"x")
    assert (tmp_path / "printed").read_bytes() == b"x"


def test_a_damaged_snapshot_is_refused_as_by_everybody(warm: Warm, taken: str) -> None:
    os.truncate(taken, os.path.getsize(taken) - 1)
    with pytest.raises(HostError) as expected:
        Snapshot(taken)
    with pytest.raises(HostError) as error:
        warm.spawn(taken)
    assert str(error.value) == str(expected.value)


def test_a_changed_disk_is_refused_with_what_to_do(warm: Warm, machines: Machines) -> None:
    disk, path = machines.directory / "disk", str(machines.directory / "snap")
    disk.write_bytes(bytes(1 << 20))
    machine = machines.make(machines.config(guest.kernel(guest.ECHO), disks=(DiskConfig(path=str(disk)),)))
    machine.snapshot(path)
    machines.close()
    disk.write_bytes(bytes(2 << 20))
    with pytest.raises(ConfigError, match=f"(?s)^{disk}: has changed since the snapshot {path}\n.*--disk"):
        warm.spawn(path)


def test_a_name_that_is_taken_is_refused(warm: Warm, taken: str) -> None:
    with warm.spawn(taken, name="taken"), pytest.raises(ConfigError, match="a VM of that name is running"):
        warm.spawn(taken, name="taken")


def test_nothing_is_imported_while_a_guest_waits(taken: str) -> None:
    done = subprocess.run([sys.executable, "-c", LATE, taken], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == []


def test_each_has_a_generation_id_of_its_own(warm: Warm, taken: str, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("one", "other")]
    for path in paths:
        with warm.spawn(taken) as vm, Client(vm.name) as client:
            client.request("snapshot", path=path)
    ids = set()
    for path in (taken, *paths):
        with closing(Snapshot(path)) as snapshot, closing(snapshot.map()) as memory:
            ids.add(memory.read(layout.GENERATION_ID, 16))
    assert len(ids) == 3


def test_one_that_has_ended_may_be_kept_and_waited_for(warm: Warm, taken: str) -> None:
    with warm.spawn(taken) as vm:
        os.kill(vm.pid, signal.SIGTERM)
        assert vm.wait(PATIENCE_S).code == 123
        vm.keep()
        assert vm.wait(PATIENCE_S).code == 123


def test_a_rehearsal_is_of_a_vm_that_runs_and_leaves_all_as_it_was(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = rehearsal._idle_machine(host_kind(None))
    try:
        shutil.copy(path, tmp_path / "idle")
        with warm.spawn(str(tmp_path / "idle")) as vm, pytest.raises(NoAnswer, match="has not ended"):
            vm.wait(0.5)
        handlers, environment = [signal.getsignal(number) for number in ENDING_SIGNALS], dict(os.environ)
        rehearsal._rehearse(path, host_kind(None))
        assert dict(os.environ) == environment
        assert {signal.getsignal(number) for number in ENDING_SIGNALS} == {signal.SIG_DFL}
        assert [file.name for file in tmp_path.iterdir()] == ["idle"]
        for number, handler in zip(ENDING_SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    finally:
        os.close(int(os.path.basename(path)))
