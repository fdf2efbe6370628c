"""The plugin of pytest, with VMs that are none. With real ones: tests/guest/test_testing.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.testing.fakes import FakeVM
from vmm.testing import lab, store
from vmm.testing.snapshot import Snapshot

Run = Callable[..., pytest.RunResult]


def _clone(snapshot: Snapshot, name: str = "", *, nets: tuple[str, ...] = (), timeout: float = 0) -> FakeVM:
    del timeout
    return FakeVM(replace(snapshot.config, nets=nets), name)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs pytest on one file of tests, where KVM is and the VMs are none."""
    monkeypatch.setattr(store, "VM", FakeVM)
    monkeypatch.setattr(FakeVM, "made", [])
    monkeypatch.setattr(FakeVM, "fails", None)
    monkeypatch.setattr(Snapshot, "clone", _clone)
    monkeypatch.setattr(lab, "KVM", "/dev/null")
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYVMM_REQUIRE", raising=False)
    (tmp_path / "vmlinux").touch()

    def run(test: str, *arguments: str, kernel: bool = True) -> pytest.RunResult:
        pytester.makepyfile(test)
        given = [f"--pyvmm-kernel={tmp_path}/vmlinux"] if kernel else []
        return pytester.runpytest_inprocess("-p", "no:hypothesispytest", "-rs", *given, *arguments)

    return run


def clones() -> list[FakeVM]:
    """The VMs that tests had, not those of which the snapshots are."""
    return [vm for vm in FakeVM.made if vm.name]


def test_each_test_has_a_vm_of_its_own_from_one_snapshot(run: Run) -> None:
    done = run("""
        def test_one(vm): pass
        def test_two(vm): pass
    """)
    done.assert_outcomes(passed=2)
    assert len(FakeVM.made) == 3
    assert all(vm.closed for vm in FakeVM.made)
    assert [vm.name.split("-")[0] for vm in clones()] == ["test_one", "test_two"]


def test_the_nearest_marker_wins_over_options_and_ini(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npyvmm_append = from the ini\npyvmm_memory = 64M\npyvmm_disk =\n  16M\n  32M\n")
    done = run(
        """
        import pytest
        pytestmark = pytest.mark.vm(cpus=2, memory="128M")

        @pytest.mark.vm(cpus=3)
        def test_it(vm, vm_factory):
            vm_factory(cpus=4, name="other")
        """,
        *("--pyvmm-cpus", "8"),
    )
    done.assert_outcomes(passed=1)
    first, second = clones()
    assert (first.config.cpus, first.config.memory, first.config.append) == (3, "128M", "from the ini")
    assert [disk.split("/")[-1] for disk in first.config.disks] == [
        "empty-16777216.img,snapshot=on",
        "empty-33554432.img,snapshot=on",
    ]
    assert (second.config.cpus, second.name.split("-")[0]) == (4, "other")


def test_what_a_vm_does_not_have_is_refused(run: Run) -> None:
    done = run("""
        import pytest

        @pytest.mark.vm(ram="1G")
        def test_it(vm): pass
    """)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*a VM has no ram; it has append, cpus, *"])


def test_where_there_is_no_kvm_tests_are_skipped_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "KVM", "/dev/no-kvm")
    done = run("def test_it(vm): pass")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*no VMs here: /dev/no-kvm: No such file or directory; pyvmm doctor says more"])


@pytest.mark.parametrize("by", ["environment", "ini"])
def test_where_vms_are_required_they_fail(
    run: Run, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester, by: str
) -> None:
    monkeypatch.setattr(lab, "KVM", "/dev/no-kvm")
    if by == "ini":
        pytester.makeini("[pytest]\npyvmm_require = true\n")
    else:
        monkeypatch.setenv("PYVMM_REQUIRE", "net,kvm")
    run("def test_it(vm): pass").assert_outcomes(errors=1)


def test_without_any_image_tests_are_skipped_with_what_makes_one(run: Run) -> None:
    done = run("def test_it(vm): pass", kernel=False)
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*no *images/micro*"])


def test_an_image_that_was_asked_for_must_be_there(run: Run) -> None:
    run("def test_it(vm): pass", "--pyvmm-image", "mine", kernel=False).assert_outcomes(errors=1)


def test_the_report_of_a_failing_test_has_console_outcome_and_statistics(run: Run) -> None:
    done = run("def test_it(vm): assert False")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["*- VM test_it-* -*", "running; the last *", "login:", "*- VM test_it-*: statistics -*", "* 7  hlt"]
    )


def test_a_guest_that_dies_fails_its_test_at_once(run: Run) -> None:
    done = run("""
        import threading, time

        def test_it(vm):
            threading.Timer(0.1, vm.panic).start()
            began = time.monotonic()
            try:
                time.sleep(60)
            finally:
                assert time.monotonic() - began < 30
    """)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["E *GuestPanic: VM test_it-*: Kernel panic: gone"])


def test_a_guest_that_dies_unnoticed_fails_its_test_at_the_end(run: Run) -> None:
    done = run("""
        def test_it(vm): vm.has_failed = True
    """)
    done.assert_outcomes(failed=1)


def test_a_guest_that_dies_while_a_snapshot_is_built_does_not_spoil_that(run: Run) -> None:
    done = run("""
        import pytest
        from tests.unit.testing.fakes import FakeVM

        @pytest.fixture(scope="session")
        def vm_prepare():
            return lambda _: [vm.panic() for vm in FakeVM.made if vm.name]

        def test_one(vm, vm_factory): vm_factory(cpus=2)
        def test_two(vm_factory): vm_factory(cpus=2)
    """)
    done.assert_outcomes(failed=1, passed=1)


def test_vms_of_failing_tests_live_on_where_that_is_wanted(run: Run) -> None:
    done = run(
        """
        def test_bad(vm): assert False
        def test_good(vm): pass
        """,
        "--pyvmm-keep-failed",
    )
    bad, good = clones()
    assert (bad.kept, good.kept) == (True, False)
    done.stdout.fnmatch_lines([f"It lives on: pyvmm console {bad.name}; *"])


def test_logs_are_kept_of_all_tests(run: Run, tmp_path: Path) -> None:
    run("def test_it(vm): pass", f"--pyvmm-logdir={tmp_path}/logs")
    (log,) = (tmp_path / "logs").glob("*test_it/*.log")
    assert log.read_text().splitlines()[:2] == ["booting", "login:"]


def test_a_vm_is_prepared_before_its_snapshot(run: Run) -> None:
    done = run("""
        import pytest

        @pytest.fixture(scope="session")
        def vm_prepare():
            return lambda vm: vm.run("install")

        def test_it(vm): pass
    """)
    done.assert_outcomes(passed=1)
    assert [vm.commands[:1] for vm in FakeVM.made] == [["install"], []]


def test_guests_of_one_network_are_told_their_names(run: Run) -> None:
    done = run("""
        def test_it(vm_net):
            web, db = vm_net("web", "db")
            assert web.name.startswith("web-")
    """)
    done.assert_outcomes(passed=1)
    web, db = clones()
    assert [vm.config.nets[0].split(",")[1] for vm in (web, db)] == ["name=web", "name=db"]
    assert web.config.nets[0].split(",")[0] == db.config.nets[0].split(",")[0] != "lan=net"
    assert web.commands != db.commands
    assert len(FakeVM.made) == 3


def test_the_plugin_imports_nothing_that_other_tests_do_not_need(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_it():
            assert {name for name in sys.modules if name.startswith("vmm.")} == {"vmm.testing", "vmm.testing.plugin"}
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
