"""The entropy device."""

from __future__ import annotations

import pytest

from tests.unit.virtio.conftest import MakeRig
from vmm.virtio.rng import REQUEST_MAX, RngDevice


@pytest.mark.parametrize("size", [1, 64, 4096])
def test_buffers_are_filled(make_rig: MakeRig, size: int) -> None:
    rig = make_rig(RngDevice("rng0"), tracing=True)
    queue = rig.driver.start()[0]
    target = rig.arena.writable(size)
    head = queue.add([target])
    rig.driver.kick(0)
    assert queue.collect() == [(head, size)]
    if size > 1:
        assert rig.arena.content(target) != b"\xcc" * size
    assert rig.traced[-1] == f"rng0 read +{size:#x} -> {size:#x}"
    assert rig.tally.counts["rng0.bytes_read"] == size


def test_two_buffers_differ(make_rig: MakeRig) -> None:
    rig = make_rig(RngDevice("rng0"))
    queue = rig.driver.start()[0]
    targets = [rig.arena.writable(64) for _ in range(2)]
    for target in targets:
        queue.add([target])
    rig.driver.kick(0)
    assert rig.arena.content(targets[0]) != rig.arena.content(targets[1])


def test_a_huge_request_is_capped(make_rig: MakeRig) -> None:
    rig = make_rig(RngDevice("rng0"))
    queue = rig.driver.start()[0]
    pieces = [rig.arena.writable(40_000) for _ in range(3)]
    head = queue.add(pieces)
    rig.driver.kick(0)
    assert queue.collect() == [(head, REQUEST_MAX)]
    assert rig.arena.content(pieces[2]) == b"\xcc" * 40_000


def test_a_request_with_nothing_to_write_to(make_rig: MakeRig) -> None:
    rig = make_rig(RngDevice("rng0"))
    queue = rig.driver.start()[0]
    head = queue.add([rig.arena.readable(b"seed?")])
    rig.driver.kick(0)
    assert queue.collect() == [(head, 0)]
    assert rig.faults == []


def test_identity(make_rig: MakeRig) -> None:
    rig = make_rig(RngDevice("rng0"))
    assert rig.driver.read(0x08) == 4
    assert rig.driver.read(0x100, 8) == 0, "no configuration space"
