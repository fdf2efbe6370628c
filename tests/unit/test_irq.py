"""Interrupt lines."""

from __future__ import annotations

import os

from vmm.irq import EventFdIrqLine


def test_pulses_add_up_in_the_eventfd() -> None:
    line = EventFdIrqLine()
    line.pulse()
    line.pulse()
    assert os.eventfd_read(line.fd) == 2
    line.close()
