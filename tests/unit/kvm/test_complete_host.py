"""On a host whose KVM is complete nothing of the assist runs, costs, or is even imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import kernels
from tests.fakes.kvm import FakeKvm, run_machine
from vmm import layout, outcome
from vmm.kvm import cpuid
from vmm.kvm.assist.linux import OPTIONS
from vmm.kvm.assist.probe import HostKind

COMPLETE = HostKind((), syscall_ok=True)
SOFTWARE = HostKind(("int3", "popcnt"), syscall_ok=False)
#: The guest says a byte on a port that nobody has, and leaves.
SCRIPT = [(0x80, 1)] * 5 + [(layout.PORT_DEBUG_EXIT, 42)]
#: What only the assist asks KVM for.
ASSIST_REQUESTS = {"KVM_X86_SET_MSR_FILTER", "KVM_ENABLE_CAP", "KVM_SET_GUEST_DEBUG"}


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernels.vmlinux())
    return str(path)


def leaf_0x40000001(fake: FakeKvm) -> set[int]:
    return {eax for function, eax in fake.cpuid if function == 0x4000_0001}


def test_a_complete_host(kernel: str) -> None:
    fake, ended, command_line = run_machine(kernel, COMPLETE, SCRIPT)
    assert (ended.kind, ended.status) == (outcome.DEBUG_EXIT, 42)
    assert not ASSIST_REQUESTS & fake.calls.keys()
    assert fake.valid_regs == {0}  # no register sets come along with exits
    assert leaf_0x40000001(fake) == {0xFFFF_FFFF}  # hypercalls stay offered
    assert not set(OPTIONS) & set(command_line.split())


def test_an_exit_costs_one_ioctl(kernel: str) -> None:
    """Five more exits are five more `KVM_RUN` and nothing else."""
    few = run_machine(kernel, COMPLETE, SCRIPT)[0].calls
    many = run_machine(kernel, COMPLETE, SCRIPT[:5] + SCRIPT)[0].calls
    assert {name: many[name] - few[name] for name in many if name != "KVM_RUN"} == dict.fromkeys(
        many.keys() - {"KVM_RUN"}, 0
    )


def test_a_software_host_has_it_all(kernel: str) -> None:
    """The other way round, so that the test above means something."""
    fake, ended, command_line = run_machine(kernel, SOFTWARE, SCRIPT)
    assert ended.kind == outcome.DEBUG_EXIT
    assert {"KVM_X86_SET_MSR_FILTER", "KVM_ENABLE_CAP"} <= fake.calls.keys()
    assert fake.valid_regs == {0}  # they come along from the first assist on, and none was needed
    assert leaf_0x40000001(fake) == {0xFFFF_FFFF & ~cpuid.HYPERCALLING}
    assert set(OPTIONS) <= set(command_line.split())


@pytest.mark.parametrize(
    ("complete", "modules"),
    [
        (True, {"probe"}),
        (False, {"probe", "linux", "vcpu", "instructions", "fpu", "decode", "paging", "segments", "syscall"}),
    ],
)
def test_what_is_imported(kernel: str, *, complete: bool, modules: set[str]) -> None:
    script = (
        "from tests.fakes.kvm import assist_modules, run_machine\n"
        "from vmm.kvm.assist.probe import HostKind\n"
        f"run_machine({kernel!r}, HostKind((), syscall_ok={complete}), {SCRIPT!r})\n"
        "print(*assist_modules())\n"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {name.removeprefix("vmm.kvm.assist.") for name in ran.stdout.split()} == modules
