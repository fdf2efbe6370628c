"""Errors say what, where and what to do."""

from __future__ import annotations

import errno

import pytest

from vmm.errors import (
    BackendError,
    ConfigError,
    GuestFault,
    GuestMemoryError,
    HostError,
    KvmError,
    VmmError,
)


@pytest.mark.parametrize("kind", [ConfigError, HostError, BackendError])
def test_what_where_fix(kind: type[ConfigError | HostError]) -> None:
    assert str(kind("is empty", where="--disk a.img", fix="make it")) == "--disk a.img: is empty\n  make it"
    assert str(kind("is empty", where="--disk a.img")) == "--disk a.img: is empty"
    assert str(kind("is empty")) == "is empty"


def test_each_line_of_a_fix_is_indented() -> None:
    assert str(ConfigError("no", fix="do this\nthen that")) == "no\n  do this\n  then that"


def test_a_failed_ioctl_names_itself_and_its_errno() -> None:
    error = KvmError("KVM_RUN", errno.EFAULT)
    assert (error.op, error.errno) == ("KVM_RUN", errno.EFAULT)
    assert str(error) == "/dev/kvm: KVM_RUN failed: Bad address (errno 14)"


def test_a_bad_guest_address_is_told_in_hex() -> None:
    error = GuestMemoryError(0x1_0000_0000, 0x10)
    assert (error.gpa, error.size) == (0x1_0000_0000, 0x10)
    assert str(error) == "no guest RAM at 0x100000000+0x10"


def test_whose_fault_it_is_can_be_asked() -> None:
    assert issubclass(KvmError, HostError)
    assert issubclass(BackendError, HostError)
    assert issubclass(GuestMemoryError, GuestFault)
    assert all(issubclass(kind, VmmError) for kind in (ConfigError, HostError, GuestFault))
