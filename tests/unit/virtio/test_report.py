"""Reports to the user: the first ones, then a few."""

from __future__ import annotations

from vmm.trace import Tally
from vmm.virtio.report import BURST, INTERVAL_S, Reporter


def test_a_flood_is_cut_and_counted() -> None:
    now = 100.0
    lines: list[str] = []
    tally = Tally()
    report = Reporter("vda", lines.append, tally, clock=lambda: now)
    for _ in range(50):
        report("it hurts")
    assert lines == ["vda: it hurts"] * BURST
    assert tally.counts == {"vda.faults": 50}
    now += INTERVAL_S
    report("still")
    report("still")
    assert lines[BURST:] == [f"vda: still ({50 - BURST} more were not shown)"]
    now += 1000 * INTERVAL_S
    for _ in range(50):
        report("again")
    assert len(lines) == 2 * BURST + 1
