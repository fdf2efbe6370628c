"""The doctor's look at KVM, on a real one."""

from __future__ import annotations

import os

import pytest

from vmm.kvm.doctor import check_kvm

pytestmark = pytest.mark.kvm


def test_a_guest_instruction_runs_and_nothing_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    rows = {row.name: row for row in check_kvm()}
    assert set(os.listdir("/proc/self/fd")) == before
    assert [row.status for row in rows.values() if row.need == "needed"] == ["ok"] * 4
    assert rows["run a guest"].seen.startswith("one instruction, with set-up in ")
    assert rows["KVM kind"].seen.startswith(("complete", "software, incomplete: pyvmm assists "))
