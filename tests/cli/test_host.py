"""What the host lacks: exit code 125, and the command that mends it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Pyvmm
from tests.fakes.guest import HANG, POWER_OFF, say
from tests.fakes.host import KVM_FOR_ALL, KVM_FOR_ROOT_ONLY, NOBODY, private_dev, public_directory


@pytest.fixture
def ordinary(cache: str) -> Iterator[Pyvmm]:
    """Runs pyvmm in a directory that an ordinary user can read and not write."""
    with public_directory() as directory:
        runner = Pyvmm(directory, cache)
        yield runner
        assert runner.leftovers() == set()


@pytest.mark.root
def test_no_kvm(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), before=private_dev())
    assert run.code == 125
    assert run.messages.startswith("pyvmm: /dev/kvm: cannot be opened: No such file or directory\n  ")
    assert "modprobe kvm" in run.messages


@pytest.mark.root
def test_no_permission_for_kvm(ordinary: Pyvmm) -> None:
    run = ordinary(*ordinary.guest(HANG), before=(*KVM_FOR_ROOT_ONLY, *NOBODY))
    assert run.code == 125
    assert run.messages.startswith("pyvmm: /dev/kvm: cannot be opened: Permission denied\n  ")
    assert "setfacl" in run.messages


@pytest.mark.root
def test_something_else_for_kvm(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), before=private_dev("ln /dev/null /dev/kvm"))
    assert run.code == 125
    assert run.messages.startswith("pyvmm: /dev/kvm: is not KVM\n")


@pytest.mark.root
@pytest.mark.kvm
def test_an_ordinary_user_needs_nothing_but_kvm(ordinary: Pyvmm) -> None:
    run = ordinary(*ordinary.guest(say("hello\n"), POWER_OFF), before=(*KVM_FOR_ALL, *NOBODY))
    assert (run.code, run.output, run.messages) == (0, "hello\n", "")


@pytest.mark.root
@pytest.mark.kvm
def test_a_cache_that_cannot_be_written_is_no_error(ordinary: Pyvmm) -> None:
    ordinary.environment["PYVMM_CACHE"] = "/nowhere/cache"
    assert ordinary(*ordinary.guest(POWER_OFF), before=(*KVM_FOR_ALL, *NOBODY)).code == 0


@pytest.mark.root
@pytest.mark.kvm
def test_a_disk_that_may_not_be_written(ordinary: Pyvmm) -> None:
    path = ordinary.file("root.img", bytes(4096))
    os.chmod(path, 0o444)
    run = ordinary(*ordinary.guest(HANG), "--disk", path, before=(*KVM_FOR_ALL, *NOBODY))
    assert (run.code, run.messages) == (
        125,
        (
            f"pyvmm: {path}: cannot open it to read and write: Permission denied\n"
            f"  attach it read-only, or allow it: chmod u+rw {path}\n"
        ),
    )
    assert ordinary(*ordinary.guest(POWER_OFF), "--disk", f"{path},readonly", before=(*KVM_FOR_ALL, *NOBODY)).code == 0


@pytest.mark.root
@pytest.mark.kvm
def test_a_kernel_that_may_not_be_read(ordinary: Pyvmm) -> None:
    path = ordinary.guest(HANG)[1]
    os.chmod(path, 0o600)
    run = ordinary("--kernel", path, before=(*KVM_FOR_ALL, *NOBODY))
    assert (run.code, run.messages) == (
        2,
        f"pyvmm: {path}: cannot open the kernel: Permission denied\n  make it readable: chmod a+r {path}\n",
    )


@pytest.mark.kvm
def test_more_memory_than_may_be_had(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG)[:2], "--memory", "1G", before=("prlimit", f"--as={800 << 20}"))
    assert (run.code, run.messages) == (
        125,
        "pyvmm: --memory: cannot map 1024 MiB of guest RAM: Cannot allocate memory\n  ask for less memory\n",
    )


# The doctor.


@pytest.mark.kvm
def test_the_doctor_says_that_vms_can_run_here(pyvmm: Pyvmm) -> None:
    run = pyvmm("doctor")
    assert (run.code, run.messages) == (0, "")
    assert run.output.endswith("\nVMs can run here.\n")
    assert run.output.startswith("ok      needed  /dev/kvm ")


@pytest.mark.kvm
def test_the_doctor_speaks_json(pyvmm: Pyvmm) -> None:
    run = pyvmm("doctor", "--format", "json")
    told = json.loads(run.output)
    assert (run.code, told["version"], told["can_run"]) == (0, 1, True)
    assert told["checks"][0] == {
        "name": "/dev/kvm",
        "need": "needed",
        "status": "ok",
        "seen": "opens, KVM API 12",
        "fix": "",
    }


@pytest.mark.root
@pytest.mark.parametrize("form", ["table", "json"])
def test_the_doctor_says_1_where_vms_cannot_run(pyvmm: Pyvmm, form: str) -> None:
    run = pyvmm("doctor", f"--format={form}", before=private_dev())
    assert (run.code, run.messages) == (1, "")
    if form == "json":
        told = json.loads(run.output)
        assert told["can_run"] is False
        assert (told["checks"][0]["status"], told["checks"][1]["name"]) == ("absent", "guest memory")
    else:
        assert run.output.startswith("absent  needed  /dev/kvm ")
        assert run.output.endswith("\nVMs cannot run here: /dev/kvm\n")


@pytest.mark.root
def test_the_doctor_tells_an_ordinary_user_what_to_do(ordinary: Pyvmm) -> None:
    run = ordinary("doctor", before=(*KVM_FOR_ROOT_ONLY, *NOBODY))
    assert (run.code, run.messages) == (1, "")
    assert "run: sudo setfacl -m u:$USER:rw /dev/kvm" in run.output


def test_the_doctor_knows_two_formats(pyvmm: Pyvmm) -> None:
    run = pyvmm("doctor", "--format", "xml")
    assert (run.code, run.messages) == (2, "pyvmm: --format: 'xml' is no format\n  table or json\n")


def test_the_doctor_has_help(pyvmm: Pyvmm) -> None:
    run = pyvmm("doctor", "--help")
    assert run.code == 0
    assert run.output.startswith("usage: pyvmm doctor [options]\n")
