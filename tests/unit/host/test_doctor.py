"""`pyvmm doctor`: each finding, and how they are shown."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
from typing import Any

import pytest

from vmm.cli.doctor import can_run, doctor, render_json, render_table
from vmm.errors import BackendError
from vmm.host import doctor as host
from vmm.host.doctor import MIB, Row
from vmm.host.net_helper import client
from vmm.host.net_helper.client import Helper
from vmm.kvm.doctor import check_kvm, kvm_fix, module_fix

GOOD = Row("/dev/kvm", "needed", "ok", "opens, KVM API 12")
NO_TAP = Row("make a tap", "useful", "failed", "needs CAP_NET_ADMIN", "run pyvmm with sudo\nor do not")
NO_KVM = Row(
    "/dev/kvm", "needed", "absent", "cannot be opened: No such file or directory", "run: sudo modprobe kvm_amd"
)


class RefusingLibc:
    """A C library whose functions all fail with one errno."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __getattr__(self, name: str) -> Any:
        def refuse(*arguments: Any) -> int:
            ctypes.set_errno(self.code)
            return -1

        return refuse


def refuse_all(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(host, "_libc", RefusingLibc(code))


def refuse_open(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: str, *arguments: Any) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", refuse)


def in_container(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: inside and path == "/.dockerenv")


def test_the_table() -> None:
    assert render_table([GOOD, NO_TAP]) == (
        "ok      needed  /dev/kvm    opens, KVM API 12\n"
        "failed  useful  make a tap  needs CAP_NET_ADMIN\n"
        "                            run pyvmm with sudo\n"
        "                            or do not\n"
        "\n"
        "VMs can run here.\n"
    )


def test_the_verdict_names_what_stands_in_the_way() -> None:
    assert render_table([NO_KVM, NO_TAP]).endswith("\n\nVMs cannot run here: /dev/kvm\n")
    assert not can_run([NO_KVM, NO_TAP])
    assert can_run([GOOD, NO_TAP])


def test_the_json_keys_are_stable() -> None:
    assert json.loads(render_json([NO_KVM])) == {
        "version": 1,
        "can_run": False,
        "checks": [
            {
                "name": "/dev/kvm",
                "need": "needed",
                "status": "absent",
                "seen": "cannot be opened: No such file or directory",
                "fix": "run: sudo modprobe kvm_amd",
            }
        ],
    }


@pytest.mark.parametrize(("found", "code"), [([GOOD, NO_TAP], 0), ([NO_KVM, NO_TAP], 1)])
def test_the_exit_code_tells_whether_vms_can_run(monkeypatch: pytest.MonkeyPatch, found: list[Row], code: int) -> None:
    monkeypatch.setattr("vmm.cli.doctor.rows", lambda: iter(found))
    output = io.StringIO()
    assert doctor(output, as_json=True) == code
    assert json.loads(output.getvalue())["can_run"] is (code == 0)


def test_every_host_check_leaves_nothing_behind() -> None:
    before = set(os.listdir("/proc/self/fd"))
    names = [check().name for check in host.HOST_CHECKS]
    assert len(set(names)) == len(names)
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    in_container(monkeypatch, inside=False)
    (row,) = check_kvm(f"{tmp_path}/kvm")
    assert (row.need, row.status) == ("needed", "absent")
    assert "No such file" in row.seen
    assert row.fix


def test_kvm_that_is_something_else() -> None:
    (row,) = check_kvm("/dev/null")
    assert (row.need, row.status) == ("needed", "failed")


def test_kvm_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    in_container(monkeypatch, inside=False)
    refuse_open(monkeypatch, errno.EACCES)
    (row,) = check_kvm()
    assert (row.status, row.seen) == ("failed", "cannot be opened: Permission denied")
    assert row.fix.splitlines()[0] == "run: sudo setfacl -m u:$USER:rw /dev/kvm"


def test_kvm_on_a_github_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    in_container(monkeypatch, inside=False)
    assert "99-kvm.rules" in kvm_fix(errno.EACCES)


def test_kvm_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    in_container(monkeypatch, inside=True)
    assert kvm_fix(errno.ENOENT) == "this is a container: start it with --device /dev/kvm"
    assert "setfacl" in kvm_fix(errno.EACCES)


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ({"vmx", "hypervisor"}, "run: sudo modprobe kvm_intel"),
        ({"svm"}, "run: sudo modprobe kvm_amd"),
        ({"hypervisor"}, "this is a virtual machine without nested virtualization"),
        (set(), "turn on VT-x (Intel) or SVM (AMD) in the firmware's set-up"),
    ],
)
def test_the_module_that_this_processor_needs(flags: set[str], fix: str) -> None:
    assert module_fix(flags).startswith(fix)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available_memory", lambda: 64 * MIB)
    row = host.check_memory()
    assert (row.need, row.status, row.seen) == ("needed", "failed", "64 MiB available")


def test_memory_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("vmm.host.doctor.mmap.mmap", refuse)
    row = host.check_memory()
    assert (row.status, row.fix) == ("failed", "run: ulimit -v unlimited")


def test_the_tap_is_not_tried_without_tun(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_open(monkeypatch, errno.EACCES)
    assert host.check_tun().fix.startswith("run: sudo setfacl -m u:$USER:rw /dev/net/tun")
    assert host.check_tap().status == "absent"


def test_no_namespace_to_try_a_bridge_in(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch, errno.EPERM)
    row = host.check_bridge()
    assert row.status == "absent"
    assert row.seen == "not tried: no network namespace to try it in (Operation not permitted)"


@pytest.mark.parametrize(
    ("answer", "status", "seen"),
    [
        ({"lab": "line", "br0": "line"}, "ok", "we may join lab, br0"),
        ({}, "failed", "no line of its allow-list allows us a network"),
        (BackendError("is no TOML", where="net.toml:3"), "failed", "net.toml:3: is no TOML"),
    ],
)
def test_the_network_helper(monkeypatch: pytest.MonkeyPatch, answer: Any, status: str, seen: str) -> None:
    def ask(_: Helper) -> dict[str, str]:
        if isinstance(answer, BackendError):
            raise answer
        return dict(answer)

    monkeypatch.setattr(client, "find_helper", lambda: Helper("/socket"))
    monkeypatch.setattr(client, "ask_networks", ask)
    row = host.check_net_helper()
    assert (row.need, row.status, row.seen) == ("useful", status, seen)


def test_no_network_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_helper", lambda: None)
    row = host.check_net_helper()
    assert (row.status, row.fix.splitlines()[0]) == ("absent", "run: pyvmm-net-helper --print-units | sudo sh")


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSYS, "absent"), (errno.EPERM, "failed")])
def test_no_io_uring(monkeypatch: pytest.MonkeyPatch, code: int, status: str) -> None:
    refuse_all(monkeypatch, code)
    row = host.check_io_uring()
    assert (row.need, row.status) == ("useful", status)
    assert row.fix


def test_userfaultfd_by_neither_way(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch, errno.EPERM)
    refuse_open(monkeypatch, errno.EACCES)
    row = host.check_userfaultfd()
    assert (row.status, row.seen) == ("failed", "Operation not permitted")
    assert row.fix.startswith("run: sudo setfacl -m u:$USER:rw /dev/userfaultfd")


def test_no_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_all(monkeypatch, errno.ENOMEM)
    row = host.check_locked_memory()
    assert (row.status, row.seen) == ("failed", "locking 8 MiB: Cannot allocate memory")
