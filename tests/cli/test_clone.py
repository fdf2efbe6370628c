"""`pyvmm clone`, as its users meet it."""

from __future__ import annotations

import os

import pytest

from tests.cli.conftest import Pyvmm, running
from tests.cli.test_snapshot import log_of, snapshot, type_to
from tests.fakes.guest import ECHO

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_vm_is_left")]


def clones(pyvmm: Pyvmm, *arguments: str) -> list[str]:
    """The clones that are made, which go on as they should."""
    run = pyvmm("clone", *arguments)
    assert (run.code, run.messages) == (0, "")
    names = run.output.split()
    for name in names:
        type_to(name, f"I am {name}")
    for name in names:
        log_of(name, pyvmm, f"I am {name}")
    return names


def test_a_running_vm_goes_on_beside_its_clones(pyvmm: Pyvmm) -> None:
    with running(pyvmm, ECHO):
        assert clones(pyvmm, "web1", "--count", "2") == ["web1-1", "web1-2"]
        assert clones(pyvmm, "web1") == ["web1-3"]
        type_to("web1", "x")
        log_of("web1", pyvmm, "up\nx")
    assert clones(pyvmm, "web1-3", "--name", "again") == ["again"]
    assert pyvmm("kill", "web1-1", "web1-2", "web1-3", "again").code == 0


def test_a_snapshot_is_cloned_as_often_as_is_wanted(pyvmm: Pyvmm) -> None:
    path = snapshot(pyvmm)
    assert clones(pyvmm, path, "--count", "3", "--name", "web") == ["web-1", "web-2", "web-3"]
    assert clones(pyvmm, "snap") == ["snap-1"]
    assert pyvmm("kill", "web-1", "web-2", "web-3", "snap-1").code == 0


def test_all_are_made_or_none(pyvmm: Pyvmm) -> None:
    snapshot(pyvmm)
    with running(pyvmm, ECHO, name="web-2"):
        run = pyvmm("clone", "snap", "--count", "3", "--name", "web")
        assert run.code == 2
        assert "a VM of that name is running" in run.messages
        assert pyvmm("ps", "--format", "json").output.count('"name"') == 1


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_number_that_is_none_is_refused(pyvmm: Pyvmm, count: str) -> None:
    run = pyvmm("clone", "web1", "--count", count)
    assert run.code == 2
    assert "--count" in run.messages


def test_a_vm_that_does_not_run_and_a_file_that_is_not_there_are_told(pyvmm: Pyvmm) -> None:
    assert "web9: no such VM is running" in pyvmm("clone", "web9").messages
    assert "/web9: cannot be opened" in pyvmm("clone", "./web9").messages


def test_a_disk_that_the_vm_writes_to_itself_is_refused_with_what_to_do(pyvmm: Pyvmm) -> None:
    disk = pyvmm.file("disk", bytes(1 << 20))
    with running(pyvmm, ECHO, arguments=("--disk", disk)):
        run = pyvmm("clone", "web1")
    assert run.code == 2
    assert f"--disk {disk}: web1 writes to it" in run.messages
    assert f"--disk {disk},snapshot=on" in run.messages


@pytest.mark.parametrize("form", ["{},snapshot=on", "overlay={}.cow,base={}", "{},readonly"])
def test_a_disk_that_others_may_have_too_is_no_obstacle(pyvmm: Pyvmm, form: str) -> None:
    disk = pyvmm.file("disk", bytes(1 << 20))
    pyvmm.may_stay("disk.cow")
    before = os.stat(disk)
    with running(pyvmm, ECHO, arguments=("--disk", form.format(disk, disk))):
        assert clones(pyvmm, "web1", "--count", "2") == ["web1-1", "web1-2"]
    assert pyvmm("kill", "web1-1", "web1-2").code == 0
    assert os.stat(disk).st_mtime_ns == before.st_mtime_ns


def test_each_may_have_what_is_named_by_it(pyvmm: Pyvmm) -> None:
    disk = pyvmm.file("disk", bytes(1 << 20))
    for name in ("snap-1", "snap-2"):
        pyvmm.may_stay(f"{name}.cow")
    pyvmm.may_stay("snap")
    with running(pyvmm, ECHO, arguments=("--disk", disk)):
        assert pyvmm("snapshot", "web1", "snap").code == 0
    names = clones(pyvmm, "snap", "--count", "2", "--disk", f"overlay={{name}}.cow,base={disk}")
    assert {f"{name}.cow" for name in names} <= set(os.listdir(pyvmm.directory))
    assert pyvmm("kill", *names).code == 0
