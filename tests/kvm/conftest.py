"""A KVM and a scratch guest for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmm.kvm.scratch import ScratchGuest
from vmm.kvm.system import Kvm


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    opened = Kvm()
    yield opened
    opened.close()


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[ScratchGuest]:
    with ScratchGuest(kvm) as made:
        yield made


@pytest.fixture
def pc(kvm: Kvm) -> Iterator[ScratchGuest]:
    """A scratch guest with interrupt controllers."""
    with ScratchGuest(kvm, irqchip=True) as made:
        yield made
