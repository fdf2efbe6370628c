"""Running VMs as other processes meet them: by name, with the verbs, and at their consoles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.cli.conftest import UP, Pyvmm, TerminalRun, finish, running
from tests.cli.test_streams import CHATTER
from tests.fakes.guest import ECHO, HANG, RESET_BY_ACPI, inb, outb, say
from vmm import layout
from vmm.api.client import Client
from vmm.errors import HostError

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_vm_is_left")]

#: Waits for a byte of the keyboard, as Ctrl-Alt-Del is one.
WAIT_FOR_KEY = inb(layout.PORT_I8042 + 4) + b"\xa8\x01\x74\xf5"


def test_in_the_background(pyvmm: Pyvmm) -> None:
    run = pyvmm("run", "--detach", *pyvmm.guest(UP, HANG), "--name", "web1")
    assert (run.code, run.output, run.messages) == (0, "web1\n", "")
    (vm,) = json.loads(pyvmm("ps", "--format", "json").output)["vms"]
    assert (vm["name"], vm["state"], vm["memory_bytes"]) == ("web1", "running", 16 << 20)
    with open(f"/proc/{vm['pid']}/stat") as stat:
        assert int(stat.read().split()[5]) == vm["pid"]  # a session of its own, which no terminal hangs up
    assert pyvmm("kill", "web1").code == 0
    assert json.loads(pyvmm("ps", "--format", "json").output)["vms"] == []


def test_a_background_start_that_fails_says_why(pyvmm: Pyvmm) -> None:
    run = pyvmm("run", "--detach", "--kernel", "missing")
    assert (run.code, run.output) == (2, "")
    assert run.messages.startswith("pyvmm: missing: there is no such kernel file")


def test_a_name_is_one_vms(pyvmm: Pyvmm) -> None:
    with running(pyvmm, HANG) as process:
        run = pyvmm(*pyvmm.guest(HANG), "--name", "web1")
    assert run.code == 2
    assert run.messages == (
        f"pyvmm: --name web1: a VM of that name is running, process {process.pid}\n"
        "  choose another; pyvmm ps lists them\n"
    )


def test_without_a_name_there_is_one(pyvmm: Pyvmm) -> None:
    names = [pyvmm("run", "--detach", *pyvmm.guest(HANG)).output.strip() for _ in range(2)]
    assert names == ["vm-1", "vm-2"]
    assert pyvmm("kill", *names).code == 0


def test_ps_is_a_table(pyvmm: Pyvmm) -> None:
    assert pyvmm("ps").output == "NAME  PID  STATE  UP  CPUS  MEMORY  KERNEL\n"
    with running(pyvmm, HANG) as process:
        heading, line = pyvmm("ps").output.splitlines()
    assert heading.split() == ["NAME", "PID", "STATE", "UP", "CPUS", "MEMORY", "KERNEL"]
    assert line.split()[:3] == ["web1", str(process.pid), "running"]
    assert line.endswith(os.path.join(pyvmm.directory, "kernel"))


def test_ps_does_not_wait_for_one_that_does_not_answer(pyvmm: Pyvmm) -> None:
    with running(pyvmm, HANG) as process:
        process.send_signal(signal.SIGSTOP)
        (vm,) = json.loads(pyvmm("ps", "--format", "json").output)["vms"]
        assert vm == {"name": "web1", "state": "no answer", "pid": process.pid}
        process.send_signal(signal.SIGCONT)


def test_info(pyvmm: Pyvmm) -> None:
    disk = pyvmm.file("root.img", bytes(4096))
    run = pyvmm("run", "--detach", *pyvmm.guest(HANG), "--disk", disk, "--name", "web1")
    assert run.code == 0
    lines = dict(line.split(None, 1) for line in pyvmm("info", "web1").output.splitlines())
    assert (lines["name"], lines["memory"], lines["disks"]) == ("web1", "16 MiB", disk)
    told = json.loads(pyvmm("info", "web1", "--format=json").output)
    assert (told["version"], told["vm"]["disks"]) == (1, [disk])
    pyvmm("kill", "web1")


def test_a_paused_guest_does_nothing_until_it_is_resumed(pyvmm: Pyvmm) -> None:
    with running(pyvmm, CHATTER, name="web1") as process, Client("web1") as client:
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        assert pyvmm("pause", "web1").code == 0
        assert client.request("status")["state"] == "paused"
        before = client.request("stats")
        time.sleep(0.2)
        assert client.request("stats") == before
        assert pyvmm("resume", "web1").code == 0
        assert client.request("status")["state"] == "running"
        process.stdout.read()  # or the guest is kept waiting for its output
        time.sleep(0.1)
        assert client.request("stats") != before


def test_stop_is_a_shutdown_of_the_guests_own(pyvmm: Pyvmm) -> None:
    with running(pyvmm, WAIT_FOR_KEY, RESET_BY_ACPI) as process:
        run = pyvmm("stop", "web1")
        assert (run.code, run.messages) == (0, "")
        assert finish(process).code == 123


def test_stop_ends_a_guest_that_does_not_listen(pyvmm: Pyvmm) -> None:
    with running(pyvmm, HANG) as process:
        run = pyvmm("stop", "--timeout", "0.2", "web1")
        assert run.code == 0
        assert run.messages == "pyvmm: web1: the guest did not shut down within 0.2 seconds, and was ended\n"
        assert finish(process).code == 123


def test_stop_wakes_a_paused_guest(pyvmm: Pyvmm) -> None:
    with running(pyvmm, WAIT_FOR_KEY, RESET_BY_ACPI) as process:
        pyvmm("pause", "web1")
        assert pyvmm("stop", "web1").messages == ""
        assert finish(process).code == 123


@pytest.mark.parametrize("state", ["running", "paused"])
def test_kill(pyvmm: Pyvmm, state: str) -> None:
    with running(pyvmm, HANG) as process:
        if state == "paused":
            pyvmm("pause", "web1")
        assert pyvmm("kill", "web1").code == 0
        assert finish(process).code == 123


def test_kill_does_not_need_the_vms_help(pyvmm: Pyvmm) -> None:
    with running(pyvmm, HANG) as process:
        process.send_signal(signal.SIGSTOP)
        with_it = pyvmm.start("kill", "web1")
        assert process.wait(10) == -signal.SIGKILL
        assert finish(with_it).code == 0


def test_a_guest_that_reboots_in_a_circle_can_be_paused_at_any_time(pyvmm: Pyvmm) -> None:
    with running(pyvmm, RESET_BY_ACPI) as process, Client("web1") as client:
        for _ in range(20):
            try:
                client.request("pause", wait_s=10)
                client.request("resume", wait_s=10)
            except HostError:
                continue  # between two boots, or at an end
        process.terminate()
        assert process.wait(10) == 123


def test_what_a_killed_vm_has_left_goes_with_the_next_look(pyvmm: Pyvmm, run_directory: str) -> None:
    with running(pyvmm, HANG) as process:
        process.kill()
        process.wait()
    assert os.listdir(run_directory) == ["web1"]
    assert pyvmm("ps").output.count("\n") == 1


@pytest.mark.parametrize("verb", ["info", "pause", "resume", "stop", "kill", "console", "logs"])
def test_no_such_vm(pyvmm: Pyvmm, verb: str) -> None:
    with running(pyvmm, HANG, name="other"):
        run = pyvmm(verb, "web1")
    assert (run.code, run.messages) == (2, "pyvmm: web1: no such VM is running\n  running: other\n")


def test_one_failure_does_not_keep_the_others(pyvmm: Pyvmm) -> None:
    with running(pyvmm, HANG) as process:
        run = pyvmm("kill", "nobody", "web1")
        assert (run.code, run.messages) == (2, "pyvmm: nobody: no such VM is running\n  running: web1\n")
        assert finish(process).code == 123


@pytest.mark.parametrize("verb", ["ps", "info", "pause", "resume", "stop", "kill", "console", "logs"])
def test_every_verb_has_help(pyvmm: Pyvmm, verb: str) -> None:
    run = pyvmm(verb, "--help")
    assert (run.code, run.messages) == (0, "")
    assert run.output.startswith(f"usage: pyvmm {verb} ")


def test_events_over_reboots_to_the_end(pyvmm: Pyvmm) -> None:
    with running(pyvmm, WAIT_FOR_KEY, RESET_BY_ACPI) as process, Client("web1") as client, Client("web1") as other:
        events = client.events(timeout_s=10)
        other.request("ctrl_alt_del")
        assert next(events) == {"event": "rebooted"}
        other.request("kill")
        assert next(events) == {"event": "ended", "outcome": "stopped", "message": "stopped by pyvmm kill"}
        assert finish(process).code == 123


def test_a_panic_is_an_event(pyvmm: Pyvmm) -> None:
    panic = outb(layout.PORT_PVPANIC, 1)
    with running(pyvmm, WAIT_FOR_KEY, panic, HANG) as process, Client("web1") as client, Client("web1") as other:
        events = client.events(timeout_s=10)
        other.request("ctrl_alt_del")
        assert [event["event"] for event in events] == ["panic", "ended"]
        assert finish(process).code == 120


# The console.


def test_the_console_of_a_vm(pyvmm: Pyvmm, on_terminal: Callable[..., TerminalRun]) -> None:
    with running(pyvmm, ECHO) as process:
        one, two = on_terminal("console", "web1"), on_terminal("console", "web1")
        for console in (one, two):
            console.expect(b"web1: Ctrl-A x leaves, Ctrl-A h helps")
            console.expect(b"up")
        assert one.is_raw
        one.type(b"hello\x03")
        one.expect(b"hello\x03")
        two.expect(b"hello\x03")
        two.type(b"\x01a")
        one.expect(b"\x01")
        for console in (one, two):
            console.type(b"\x01x")
            assert console.finish() == 0
            assert console.is_as_before
        assert process.poll() is None


def test_the_console_ends_with_the_vm(pyvmm: Pyvmm, on_terminal: Callable[..., TerminalRun]) -> None:
    with running(pyvmm, HANG):
        console = on_terminal("console", "web1")
        console.expect(b"up")
        pyvmm("kill", "web1")
        assert console.finish() == 0
        assert console.is_as_before


def test_ctrl_alt_del_from_the_console(pyvmm: Pyvmm, on_terminal: Callable[..., TerminalRun]) -> None:
    with running(pyvmm, WAIT_FOR_KEY, say("pressed\n"), HANG):
        console = on_terminal("console", "web1")
        console.expect(b"up")
        console.type(b"\x01d")
        console.expect(b"pressed")
        console.type(b"\x01h")
        console.expect(b"Ctrl-A x       leave the VM alone")
        console.type(b"\x01x")
        assert console.finish() == 0


def test_the_console_in_a_pipe(pyvmm: Pyvmm) -> None:
    with running(pyvmm, ECHO):
        with pyvmm.start("console", "web1", stdin=subprocess.PIPE) as console:
            assert console.stdin
            assert console.stdout
            assert console.stdout.readline() == b"up\n"
            console.stdin.write(b"a byte like any other: \x01x\n")
            console.stdin.close()
            assert console.stdout.readline() == b"a byte like any other: \x01x\n"
            console.send_signal(signal.SIGINT)
            assert console.wait(10) == -signal.SIGINT
            console.stdin = None
        pyvmm("kill", "web1")


def test_logs(pyvmm: Pyvmm) -> None:
    with running(pyvmm, say("and running\n"), HANG):
        deadline = time.monotonic() + 5
        while "and running" not in (output := pyvmm("logs", "web1").output):
            assert time.monotonic() < deadline
        assert output == "up\nand running\n"


def test_logs_that_are_followed_end_with_the_vm(pyvmm: Pyvmm) -> None:
    with running(pyvmm, WAIT_FOR_KEY, say("the end\n"), RESET_BY_ACPI), pyvmm.start("logs", "-f", "web1") as logs:
        assert logs.stdout
        assert logs.stdout.readline() == b"up\n"
        pyvmm("stop", "web1")
        assert finish(logs).output == "the end\n"
