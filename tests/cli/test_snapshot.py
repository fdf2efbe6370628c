"""`pyvmm snapshot` and `pyvmm restore`, as their users meet them, and what they meet when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import struct
import time

import pytest

from tests.cli.conftest import Process, Pyvmm, finish, running
from tests.fakes.guest import ECHO, HANG, LOAD
from vmm.api.client import Client
from vmm.snapshot.file import VERSION

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_vm_is_left")]

#: Writes to 2048 pages: mov edi, 4 MiB; mov ecx, 2048; again: mov [edi], edi; add edi, 4096; loop again.
DIRTY = b"\xbf" + struct.pack("<I", 4 << 20) + b"\xb9" + struct.pack("<I", 2048) + bytes.fromhex("893f81c700100000e2f6")


def log_of(name: str, pyvmm: Pyvmm, text: str) -> None:
    """Wait until *text* is all that the guest has printed."""
    deadline = time.monotonic() + 10
    while (output := pyvmm("logs", name).output) != text:
        assert time.monotonic() < deadline, output
        time.sleep(0.02)


def type_to(name: str, text: str) -> None:
    with Client(name) as client:
        client.request("type", text=text)


def snapshot(pyvmm: Pyvmm, name: str = "snap") -> str:
    """A snapshot of an echoing guest that has printed `up`."""
    pyvmm.may_stay(name)
    with running(pyvmm, ECHO):
        assert pyvmm("snapshot", "web1", name).code == 0
    return os.path.join(pyvmm.directory, name)


def test_a_vm_goes_on_and_so_does_its_snapshot(pyvmm: Pyvmm) -> None:
    pyvmm.may_stay("snap")
    with running(pyvmm, ECHO):
        run = pyvmm("snapshot", "web1", "snap")
        assert (run.code, run.output, run.messages) == (0, "", "")
        run = pyvmm("restore", "--detach", "--name", "web2", "snap")
        assert (run.code, run.output, run.messages) == (0, "web2\n", "")
        type_to("web1", "one")
        type_to("web2", "two")
        log_of("web1", pyvmm, "up\none")
        log_of("web2", pyvmm, "two")
        assert pyvmm("kill", "web2").code == 0


def test_any_number_of_vms_from_one(pyvmm: Pyvmm) -> None:
    snapshot(pyvmm)
    names = [pyvmm("restore", "--detach", "snap").output.strip() for _ in range(3)]
    for name in names:
        type_to(name, name)
    for name in names:
        log_of(name, pyvmm, name)
    assert pyvmm("kill", *names).code == 0


def test_an_increment_and_all_of_it_read_at_the_start(pyvmm: Pyvmm) -> None:
    parent = snapshot(pyvmm)
    pyvmm.may_stay("next")
    pyvmm("restore", "--detach", "--name", "web1", "snap")
    type_to("web1", "x")
    log_of("web1", pyvmm, "x")
    run = pyvmm("snapshot", "web1", "next", "--parent", "snap")
    assert (run.code, run.messages) == (0, "")
    pyvmm("kill", "web1")
    assert os.stat(os.path.join(pyvmm.directory, "next")).st_blocks < os.stat(parent).st_blocks
    pyvmm("restore", "--detach", "--prefault", "--name", "web1", "next")
    type_to("web1", "y")
    log_of("web1", pyvmm, "y")
    pyvmm("kill", "web1")


def test_restored_in_the_foreground_it_has_the_terminal(pyvmm: Pyvmm) -> None:
    snapshot(pyvmm)
    with pyvmm.start("restore", "-v", "--timeout", "1", "snap") as process:
        run = finish(process)
    assert run.code == 124
    assert f"goes on from {'snap'}" in run.messages


def test_a_paused_vm(pyvmm: Pyvmm) -> None:
    pyvmm.may_stay("snap")
    with running(pyvmm, ECHO):
        pyvmm("pause", "web1")
        assert pyvmm("snapshot", "web1", "snap").code == 0
        (vm,) = json.loads(pyvmm("ps", "--format", "json").output)["vms"]
        assert vm["state"] == "paused"


def test_the_disk_of_a_snapshot(pyvmm: Pyvmm) -> None:
    disk = pyvmm.file("disk.img", bytes(1 << 20))
    pyvmm.may_stay("snap")
    assert pyvmm("run", "--detach", *pyvmm.guest(HANG), "--disk", disk, "--name", "web1").code == 0
    assert pyvmm("snapshot", "web1", "snap").code == 0
    assert pyvmm("kill", "web1").code == 0
    os.utime(disk)
    run = pyvmm("restore", "snap")
    assert (run.code, run.messages) == (
        2,
        f"pyvmm: {disk}: has changed since the snapshot snap\n  give a copy as it was then: --disk\n",
    )
    run = pyvmm("restore", "snap", "--disk", disk, "--disk", disk)
    assert (run.code, run.messages) == (2, "pyvmm: --disk: the machine has 1 of them, not 2\n")
    os.unlink(disk)
    run = pyvmm("restore", "snap")
    assert (run.code, run.messages) == (
        2,
        f"pyvmm: {disk}: of the snapshot snap: No such file or directory\n  give a copy as it was then: --disk\n",
    )


def test_a_disk_with_an_overlay_goes_on_where_it_was(pyvmm: Pyvmm) -> None:
    base = pyvmm.file("base.img", bytes(1 << 20))
    for name in ("snap", "work.cow"):
        pyvmm.may_stay(name)
    disk = f"overlay=work.cow,base={base}"
    assert pyvmm("run", "--detach", *pyvmm.guest(HANG), "--disk", disk, "--name", "web1").code == 0
    assert pyvmm("snapshot", "web1", "snap").code == 0
    assert pyvmm("kill", "web1").code == 0
    assert pyvmm("restore", "--detach", "--name", "web2", "snap").code == 0
    assert pyvmm("kill", "web2").code == 0


def test_paths_are_those_of_the_vm_wherever_it_goes_on(pyvmm: Pyvmm) -> None:
    pyvmm.file("disk.img", bytes(1 << 20))
    pyvmm.may_stay("snap")
    command = ["run", "--detach", *pyvmm.guest(HANG), "--disk", "disk.img", "--name", "web1"]
    assert pyvmm(*command).code == 0
    assert pyvmm("snapshot", "web1", "snap").code == 0
    assert pyvmm("kill", "web1").code == 0
    elsewhere = ("env", "-C", "/")
    path = os.path.join(pyvmm.directory, "snap")
    assert pyvmm("restore", "--detach", "--name", "web2", path, before=elsewhere).code == 0
    assert pyvmm("kill", "web2").code == 0


# Refusals.


def test_a_file_that_would_be_emptied(pyvmm: Pyvmm) -> None:
    for name in ("snap", "printed"):
        pyvmm.may_stay(name)
    printed = os.path.join(pyvmm.directory, "printed")
    serial = f"file:{printed}"
    assert pyvmm("run", "--detach", *pyvmm.guest(HANG), "--serial", serial, "--name", "web1").code == 0
    assert pyvmm("snapshot", "web1", "snap").code == 0
    assert pyvmm("kill", "web1").code == 0
    run = pyvmm("restore", "snap")
    assert (run.code, run.messages) == (
        2,
        f"pyvmm: {printed}: would be emptied\n  if it may be: --serial {serial}\n",
    )


def test_no_vm_and_no_file(pyvmm: Pyvmm) -> None:
    run = pyvmm("snapshot", "web1", "snap")
    assert (run.code, run.messages) == (2, "pyvmm: web1: no such VM is running\n  running: none\n")
    run = pyvmm("restore", "snap")
    assert (run.code, run.messages) == (2, "pyvmm: snap: cannot be opened: No such file or directory\n")


@pytest.mark.parametrize(
    ("at", "data", "code", "why"),
    [
        (0, b"#!/bin/sh", 2, "is no snapshot of pyvmm"),
        (16, b"\x4d", 2, f"is a snapshot of version 77, not {VERSION}"),
        (20, b"~~~~", 125, "is damaged: the checksum of its state is wrong"),
        (4096 + LOAD, b"~", 125, "is damaged: the checksum of its memory is wrong"),
    ],
)
def test_a_damaged_one(pyvmm: Pyvmm, at: int, data: bytes, code: int, why: str) -> None:
    with open(snapshot(pyvmm), "r+b") as file:
        file.seek(at)
        file.write(data)
    run = pyvmm("restore", "--detach", "snap")
    assert (run.code, run.output, run.messages) == (code, "", f"pyvmm: snap: {why}\n")


def test_a_truncated_one(pyvmm: Pyvmm) -> None:
    path = snapshot(pyvmm)
    size = os.path.getsize(path)
    os.truncate(path, size // 2)
    run = pyvmm("restore", "snap")
    assert (run.code, run.messages) == (125, f"pyvmm: snap: is damaged: it has {size // 2} bytes, not {size}\n")


def test_a_parent_that_is_missing(pyvmm: Pyvmm) -> None:
    parent = snapshot(pyvmm)
    pyvmm.may_stay("next")
    with running(pyvmm, ECHO):
        pyvmm("snapshot", "web1", "next", "--parent", "snap")
    os.unlink(parent)
    run = pyvmm("restore", "next")
    assert (run.code, run.messages) == (
        2,
        f"pyvmm: next: its parent {parent}: cannot be opened: No such file or directory\n",
    )


# What goes wrong while it is written.


def child_of(process: Process) -> int:
    """The process that writes the snapshot, as soon as there is one."""
    deadline = time.monotonic() + 10
    while True:
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            with open(f"/proc/{process.pid}/task/{thread}/children") as file:
                if children := file.read().split():
                    return int(children[0])
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "the first"])
def test_a_vm_that_is_killed_leaves_the_old_one_or_none(pyvmm: Pyvmm, old: bool) -> None:
    if old:
        with open(snapshot(pyvmm), "rb") as file:
            before = file.read()
    with running(pyvmm, DIRTY, HANG) as process, pyvmm.start("snapshot", "web1", "snap") as writing:
        writer = child_of(process)
        process.kill()
        process.wait(10)
        run = finish(writing)
        assert (run.code, run.messages) == (125, "pyvmm: VM web1: has ended\n")
        while os.path.exists(f"/proc/{writer}"):
            time.sleep(0.01)
    if old:
        with open(os.path.join(pyvmm.directory, "snap"), "rb") as file:
            assert file.read() == before
    assert pyvmm("ps").output.count("\n") == 1


def test_a_writer_that_is_killed_costs_the_snapshot_only(pyvmm: Pyvmm) -> None:
    with running(pyvmm, DIRTY, ECHO) as process, pyvmm.start("snapshot", "web1", "snap") as writing:
        os.kill(child_of(process), signal.SIGKILL)
        run = finish(writing)
        path = os.path.join(pyvmm.directory, "snap")
        assert (run.code, run.messages) == (
            125,
            f"pyvmm: VM web1: {path}: cannot be written: SIGKILL has ended the process that writes it\n",
        )
        type_to("web1", "x")
        log_of("web1", pyvmm, "up\nx")


@pytest.mark.root
def test_a_full_disk_leaves_the_old_one_and_the_vm_runs(pyvmm: Pyvmm) -> None:
    small = os.path.join(pyvmm.directory, "small")
    os.mkdir(small)
    pyvmm.may_stay("small")
    mount = f'mount -t tmpfs -o size=4m small {small} && echo old >{small}/snap && exec "$@"'
    with running(pyvmm, DIRTY, ECHO, before=("unshare", "--mount", "sh", "-ec", mount, "sh")) as process:
        run = pyvmm("snapshot", "web1", f"{small}/snap")
        assert (run.code, run.messages) == (
            125,
            f"pyvmm: VM web1: {small}/snap: cannot be written: No space left on device\n",
        )
        there = f"/proc/{process.pid}/root{small}"
        assert os.listdir(there) == ["snap"]
        with open(f"{there}/snap") as file:
            assert file.read() == "old\n"
        assert os.statvfs(there).f_bfree > os.statvfs(there).f_blocks - 4
        type_to("web1", "x")
        log_of("web1", pyvmm, "up\nx")
