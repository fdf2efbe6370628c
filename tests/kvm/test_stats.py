"""What KVM counts for a processor."""

from __future__ import annotations

import pytest

from tests.kvm.code import HLT, out, start
from vmm.kvm.scratch import ScratchGuest
from vmm.kvm.stats import vcpu_counts
from vmm.kvm.system import Kvm

pytestmark = pytest.mark.kvm


def test_what_a_guest_does_is_counted(guest: ScratchGuest) -> None:
    start(guest, out(0x80, 1) * 5 + HLT)
    before = vcpu_counts(guest.vcpu.fd)
    for _ in range(6):
        guest.run()
    after = vcpu_counts(guest.vcpu.fd)
    assert set(before) == set(after)
    assert after["exits"] - before["exits"] >= 5
    assert all(before[name] <= after[name] for name in before)


def test_where_kvm_does_not_tell_there_is_nothing(kvm: Kvm) -> None:
    assert vcpu_counts(kvm.fd) == {}
