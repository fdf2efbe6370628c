"""A KVM and a scratch guest for each test; machines, and a snapshot of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.machines import ECHO, Machines
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


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made.close()


@pytest.fixture
def taken(machines: Machines) -> str:
    """A snapshot of a machine that has printed `ready`."""
    machine = machines.make(machines.config(ECHO))
    machine.start()
    machines.printed("ready\n")
    path = str(machines.directory / "snap")
    machine.snapshot(path)
    machine.close()
    return path
