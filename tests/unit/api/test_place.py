"""Names and directories of running VMs: one VM a name, and nothing left of a VM that has ended or was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmm import __version__
from vmm.api import place
from vmm.errors import BackendError, ConfigError

#: Claims the name in argv, says so, and waits to be told to release it, or to be killed.
CLAIM = """
import sys
from vmm.api import place
from vmm.errors import ConfigError
try:
    mine = place.claim(sys.argv[1])
except ConfigError:
    print("taken", flush=True)
else:
    print("mine", flush=True)
    sys.stdin.readline()
    mine.release()
"""


def claimant(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_directory_of_the_users_own_comes_and_goes(run: str) -> None:
    mine = place.claim("web1")
    assert mine.path == place.directory("web1") == f"{run}/web1"
    assert os.stat(mine.path).st_mode & 0o777 == 0o700
    with open(mine.file("info.json")) as file:
        assert json.load(file) == {"name": "web1", "pid": os.getpid(), "version": __version__}
    with open(mine.file("vsock.sock_1024"), "w"):
        pass
    assert place.is_live("web1")
    assert place.running() == ["web1"]
    mine.release()
    assert not place.is_live("web1")
    assert place.running() == []
    assert os.listdir(run) == []


def test_a_full_file_system_is_the_host_s_fault_and_keeps_nothing(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "INFO", "/dev/full")
    with pytest.raises(BackendError, match="cannot be used: No space left on device\n  set PYVMM_RUN"):
        place.claim("web1")
    assert os.listdir(run) == []


def test_without_a_name_the_first_free_number(run: str) -> None:
    first, second = place.claim(), place.claim()
    assert (first.name, second.name) == ("vm-1", "vm-2")
    first.release()
    third = place.claim()
    assert third.name == "vm-1"
    second.release()
    third.release()


def test_a_name_is_one_vms(run: str) -> None:
    mine = place.claim("web1")
    with pytest.raises(ConfigError, match=f"--name web1: a VM of that name is running, process {os.getpid()}\n"):
        place.claim("web1")
    mine.release()


@pytest.mark.parametrize("name", ["", "a" * 64, "a/b", "..", "-a", ".a", "ä", "a b", "a\n", "lan", "٣"])
def test_names_that_cannot_be(run: str, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a VM"):
        place.directory(name)


@pytest.mark.parametrize("name", ["a", "0", "Web_1.test-x", "a" * 63])
def test_names_that_can(run: str, name: str) -> None:
    mine = place.claim(name)
    assert place.running() == [name]
    mine.release()


def test_what_a_killed_vm_has_left_is_taken_away(run: str) -> None:
    with claimant("web1") as process:
        assert process.stdout
        assert process.stdout.readline() == "mine\n"
        assert place.running() == ["web1"]
        assert place.pid_of("web1") == process.pid
        process.send_signal(signal.SIGKILL)
    assert os.path.exists(f"{run}/web1/info.json")
    assert not place.is_live("web1")
    assert place.pid_of("web1") is None
    assert place.running() == []
    assert os.listdir(run) == []


def test_the_name_of_a_killed_vm_is_free(run: str) -> None:
    with claimant("web1") as process:
        assert process.stdout
        process.stdout.readline()
        with open(f"{run}/web1/control.sock", "w"):
            pass
        process.send_signal(signal.SIGKILL)
    mine = place.claim("web1")
    assert sorted(os.listdir(mine.path)) == ["info.json", "lock"]
    mine.release()


def test_of_many_that_want_a_name_at_once_one_gets_it(run: str) -> None:
    processes = [claimant("web1") for _ in range(8)]
    answers = [process.stdout.readline() for process in processes if process.stdout]
    assert sorted(answers) == ["mine\n"] + ["taken\n"] * 7
    for process in processes:
        process.communicate("\n")


def test_names_that_come_and_go_are_never_had_by_two(run: str) -> None:
    """Directories are taken away and made, and cleaned by others, all the time."""
    holders: list[int] = []
    most: list[int] = []

    def come_and_go() -> None:
        for _ in range(50):
            try:
                mine = place.claim("web1")
            except ConfigError:
                continue
            holders.append(1)
            most.append(len(holders))
            place.running()
            holders.pop()
            mine.release()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert place.running() == []


def test_a_directory_that_others_may_change_is_not_used(run: str) -> None:
    os.mkdir(f"{run}/web1")
    os.chmod(f"{run}/web1", 0o777)
    with pytest.raises(BackendError, match="others may change it"):
        place.claim("web1")
    os.rmdir(f"{run}/web1")


def test_a_link_is_not_followed(run: str, tmp_path: Path) -> None:
    os.symlink(tmp_path, f"{run}/web1")
    with pytest.raises(BackendError, match="others may change it"):
        place.claim("web1")
    os.unlink(f"{run}/web1")


def test_a_path_too_long_for_sockets_is_refused(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_RUN", f"{run}/{'x' * 60}")
    with pytest.raises(ConfigError, match="is too long for sockets in it\n  set PYVMM_RUN to a shorter one"):
        place.claim("a" * 63)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYVMM_RUN", "/somewhere")
    assert place.root() == "/somewhere"
    monkeypatch.delenv("PYVMM_RUN")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert place.root() == f"{tmp_path}/pyvmm"


def test_another_users_runtime_directory_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after `su`, which leaves XDG_RUNTIME_DIR as it is."""
    monkeypatch.delenv("PYVMM_RUN")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert place.root() == "/tmp/pyvmm-12345"
