"""The Python API and the plugin of pytest on real guests: clones that know nothing of each other, errors that tell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from vmm.api import place
from vmm.cache import cache_directory
from vmm.testing import VM, CommandFailed, CommandTimeout, GuestPanic, Snapshot, StartFailed, VMError, process
from vmm.testing.config import Config
from vmm.testing.store import Store

pytestmark = pytest.mark.guest

EXAMPLES = Path(__file__).parents[2] / "examples" / "testing"
CACHE = cache_directory()
SMALL = Config(memory="128M", disks=("16M",))
BOOT_S = 300


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """The warm process of this file's VMs."""
    process.warm()
    yield
    process.close()


@pytest.fixture(scope="module")
def booted(warm: None) -> Snapshot:
    """A guest that has booted; from pyvmm's cache, if it is there."""
    return Store(boot_timeout=BOOT_S).snapshot(SMALL)


@pytest.fixture
def vm(booted: Snapshot) -> Iterator[VM]:
    """A clone of it."""
    with booted.clone() as made:
        yield made


def test_a_command_is_as_with_subprocess(vm: VM) -> None:
    done = vm.run(["sh", "-c", "cat; echo $NAME $PWD; echo bad >&2"], input="typed\n", env={"NAME": "x"}, cwd="/tmp")
    assert (done.stdout, done.stderr, done.returncode) == ("typed\nx /tmp\n", "bad\n", 0)
    assert vm.run("printf '\\377'", text=False).stdout == b"\xff"
    with pytest.raises(CommandFailed, match=r"(?s)exit status 3.*its stderr:\s+oh") as raised:
        vm.run("echo oh >&2; exit 3")
    assert raised.value.returncode == 3
    assert vm.run("exit 3", check=False).returncode == 3
    with pytest.raises(FileNotFoundError):
        vm.run(["no-such-command"])


def test_files_come_and_go(vm: VM, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "file").chmod(0o750)
    vm.put(tmp_path / "file", "/new/directory/file")
    assert vm.run("stat -c %a /new/directory/file").stdout == "750\n"
    assert vm.get("/new/directory/file", tmp_path / "back") == data
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(FileNotFoundError):
        vm.get("/nowhere")


def test_a_program_of_the_host_runs_in_the_guest(vm: VM) -> None:
    vm.put_program("dash")
    assert vm.run(["dash", "-c", "echo $0 $((6 * 7))"]).stdout == "dash 42\n"


def test_the_console_is_pexpect_s(vm: VM) -> None:
    vm.console.sendline("echo $((6 * 7))")
    vm.console.expect(r"\b42\b")
    with pytest.raises(pexpect.TIMEOUT):
        vm.console.expect("never", timeout=0.1)


def test_clones_do_not_see_each_other(booted: Snapshot) -> None:
    with booted.clone() as one, booted.clone() as other:
        one.run("echo one > /root/file; dd if=/dev/urandom of=/dev/vdb bs=512 count=1 2>/dev/null; sync")
        assert other.run("ls /root; head -c 16 /dev/vdb | hexdump -v -e '1/1 \"%x\"'").stdout == "0" * 16
        assert one.run("cat /root/file").stdout == "one\n"


def test_each_clone_has_the_right_time_and_random_numbers_of_its_own(booted: Snapshot) -> None:
    seen = set()
    for _ in range(2):
        with booted.clone() as vm:
            now, number = vm.run("date +%s; head -c 16 /dev/urandom | hexdump -e '4/4 \"%08x\"'").stdout.split()
            assert abs(int(now) - time.time()) < 30
            seen.add(number)
    assert len(seen) == 2


def test_a_snapshot_of_a_clone_has_what_is_in_memory_and_on_disks(vm: VM) -> None:
    vm.run("mkdir /run/in-memory; echo on disk > /root/file")
    with vm.snapshot() as snapshot:
        vm.run("rm -r /run/in-memory /root/file")
        with snapshot.clone() as copy:
            assert copy.run("ls -d /run/in-memory; cat /root/file").stdout == "/run/in-memory\non disk\n"
    assert not os.path.exists(snapshot.directory)


def test_a_snapshot_of_a_paused_guest_goes_on_from_there(vm: VM) -> None:
    vm.run("mkdir /run/before")
    vm.pause()
    with vm.snapshot() as snapshot, snapshot.clone() as copy:
        copy.run("ls -d /run/before")
    assert vm.request("status")["state"] == "paused"
    vm.resume()
    vm.run(["true"])


def test_it_is_paused_and_resumed(vm: VM) -> None:
    vm.pause()
    assert vm.request("status")["state"] == "paused"
    vm.resume()
    vm.run(["true"])


def test_a_command_that_is_not_done_in_time_is_killed(vm: VM) -> None:
    with pytest.raises(CommandTimeout):
        vm.run("sleep 4321", timeout=2)
    assert "4321" not in vm.run("sleep 1; ps").stdout


def test_a_panic_is_raised_by_whatever_waits(booted: Snapshot) -> None:
    with booted.clone() as vm:
        with pytest.raises(GuestPanic, match="sysrq triggered crash") as raised:
            vm.run("echo c > /proc/sysrq-trigger", timeout=60)
        assert any("Kernel panic" in line for line in raised.value.console)
        assert raised.value.code == 120
        with pytest.raises(GuestPanic):
            vm.run(["true"])
        with pytest.raises(GuestPanic):
            vm.console.expect("never")


def test_a_guest_that_powers_off_has_ended_well(booted: Snapshot) -> None:
    with booted.clone() as vm:
        vm.run("(sleep 1; poweroff) >/dev/null 2>&1 &")
        assert vm.wait().code == 0


def test_what_cannot_start_says_why(micro: object, tmp_path: Path) -> None:
    del micro
    (tmp_path / "vmlinux").write_bytes(b"no kernel")
    with pytest.raises(StartFailed, match="vmlinux"):
        VM(tmp_path / "vmlinux").start()


def test_nothing_is_left_when_python_is_killed(booted: Snapshot) -> None:
    script = f"""
import time
from vmm.testing import Snapshot
from vmm.testing.config import Config
vm = Snapshot({booted.directory!r}, Config()).clone("orphan").start()
print(vm.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as python:
        assert python.stdout is not None
        assert int(python.stdout.readline())
        assert "orphan" in place.running()
        python.kill()
    deadline = time.monotonic() + 20
    while "orphan" in place.running():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user, also where `pytester` gives another home."""
    monkeypatch.setenv("PYVMM_CACHE", CACHE)


def run_pytest(pytester: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--pyvmm-memory=128M", "--pyvmm-disk=16M", *arguments, timeout=BOOT_S
    )


@pytest.mark.usefixtures("booted", "no_others")
def test_each_test_has_a_clone_also_of_several_workers(pytester: pytest.Pytester) -> None:
    done = run_pytest(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(vm, number):
            assert vm.run("cat /root/number", check=False).stdout == ""
            vm.run(f"echo {number} > /root/number")
        """,
        *("-n", "2"),
    )
    done.assert_outcomes(passed=4)
    assert place.running() == []


@pytest.mark.usefixtures("booted")
def test_a_panic_fails_its_test_at_once_and_is_in_the_report(pytester: pytest.Pytester) -> None:
    began = time.monotonic()
    done = run_pytest(
        pytester,
        """
        import time

        def test_it(vm):
            vm.run("(sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
            time.sleep(600)
        """,
    )
    assert time.monotonic() - began < 120
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["E *GuestPanic: VM test_it-*: Kernel panic - not syncing: sysrq triggered crash"])


@pytest.mark.usefixtures("booted", "no_others")
def test_the_vm_of_a_failing_test_can_be_kept(pytester: pytest.Pytester) -> None:
    done = run_pytest(pytester, "def test_it(vm): vm.run('touch /root/here; exit 1')", "--pyvmm-keep-failed")
    done.assert_outcomes(failed=1)
    (name,) = place.running()
    done.stdout.fnmatch_lines([f"It lives on: pyvmm console {name}; *"])
    pyvmm = [sys.executable, "-m", "vmm"]
    listed = subprocess.run([*pyvmm, "exec", name, "--", "ls", "/root"], capture_output=True, check=True)
    assert listed.stdout == b"here\n"
    subprocess.run([*pyvmm, "kill", name], check=True)


def test_testinfra_knows_vms(vm: VM) -> None:
    from vmm.testing.testinfra import host

    made = host(vm)
    assert made.file("/etc/passwd").contains("root:x:0:0")
    assert made.run("exit 7").rc == 7
    assert not made.file("/nowhere").exists


@pytest.mark.slow
def test_the_example_project() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", str(EXAMPLES)],
        cwd=EXAMPLES, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def test_all_errors_are_of_one_kind_and_have_the_vm_s_name(vm: VM) -> None:
    with pytest.raises(VMError) as raised:
        vm.run("exit 1")
    assert raised.value.name == vm.name
