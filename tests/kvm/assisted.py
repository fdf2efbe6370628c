"""A scratch guest whose vCPU has the assist."""

from __future__ import annotations

from vmm.kvm import msrs
from vmm.kvm.assist.vcpu import VcpuAssist
from vmm.kvm.exits import DebugTrap, EmulationFailure, MsrWrite, VcpuExit
from vmm.kvm.scratch import ScratchGuest
from vmm.trace import Tally

_BOUND = 200


class Assisted:
    """*guest* with a `VcpuAssist`; `tally` tells what was assisted."""

    def __init__(self, guest: ScratchGuest) -> None:
        self.guest, self.tally = guest, Tally()
        msrs.report_writes(guest.vm, msrs.STAR, 4)
        self.assist = VcpuAssist(guest.vcpu, guest.memory, self.tally)

    def run(self) -> VcpuExit:
        """The first exit that is not the assist's."""
        for _ in range(_BOUND):
            event = self.guest.run()
            if not isinstance(event, EmulationFailure | DebugTrap | MsrWrite):
                return event
            self.assist.handle(event)
        raise AssertionError(f"{_BOUND} assists without an end: {self.tally.counts}")
