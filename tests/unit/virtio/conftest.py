"""Rigs that are taken apart after the test; that fails if a device still holds guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fakes.driver import Rig
from vmm.virtio.device import VirtioDevice

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(device: VirtioDevice, *, tracing: bool = False) -> Rig:
        rigs.append(Rig(device, tracing=tracing))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
