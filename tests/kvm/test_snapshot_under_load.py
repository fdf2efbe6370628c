"""Two processors, timer interrupts, a disk and a network at work: none of them notices that they were in a file."""

from __future__ import annotations

import pytest

from tests.fakes.native import both_engines
from tests.kvm.load import survive
from tests.kvm.machines import Machines


@both_engines
def test_a_few_times(machines: Machines, engine: str) -> None:
    survive(machines, 3, engine)


@pytest.mark.slow
@both_engines
def test_a_hundred_times(machines: Machines, engine: str) -> None:
    survive(machines, 100, engine)
