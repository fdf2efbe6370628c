"""What of a machine is in a snapshot, besides its memory: told, put back, and set going again."""

from __future__ import annotations

import time

from vmm.kvm import state as kvm_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm.system import Kvm
    from vmm.kvm.vm import Vm
    from vmm.regs import Chip
    from vmm.runner import VcpuRunner
    from vmm.state import State
    from vmm.virtio.transport.core import Transport


class Parts:
    """The parts of one machine that remember something: its processors, KVM's own devices, and *chips*.

    The main thread's while the machine has not started; else of whoever makes it stand.
    """

    def __init__(
        self, vm: Vm, runners: Sequence[VcpuRunner], transports: Sequence[Transport], chips: Sequence[Chip]
    ) -> None:
        self._vm, self._runners, self._transports, self._chips = vm, runners, transports, chips

    def state(self, kvm: Kvm) -> State:
        """All of them, as they stand.

        Raises:
            HostError: it cannot be told, because of a disk that waits for room.
        """
        indices = kvm_state.msr_indices(kvm)
        return {
            "vcpus": [runner.state(indices) for runner in self._runners],
            "vm": kvm_state.vm_state(self._vm),
            "clock_ns": kvm_state.get_clock(self._vm),
            "time_ns": time.time_ns(),
            "chips": {chip.name: chip.state() for chip in self._chips},
        }

    def restore(self, state: State) -> None:
        """Make all of them what *state* says; `revive` does the rest. The order matters.

        1. The vCPUs: a local APIC must be there before the IO-APIC may have something for it.
        2. The interrupt controllers and the timer.
        3. The devices, which stand: a live one looks at its rings in memory, and interrupts by what is there now.

        Raises:
            HostError: this host cannot.
            KeyError, TypeError, ValueError, GuestFault: it is no state of this machine.
        """
        for runner, vcpu in zip(self._runners, state["vcpus"], strict=True):
            runner.restore(vcpu)
        kvm_state.restore_vm(self._vm, state["vm"])
        for transport in self._transports:
            transport.device.stand()
        chips = state["chips"]
        if chips.keys() != (names := {chip.name for chip in self._chips}):
            raise ValueError(f"has the devices {', '.join(chips)}, and this machine {', '.join(names)}")
        for chip in self._chips:
            chip.restore(chips[chip.name])

    def revive(self, state: State, *, clock_stood: bool) -> None:
        """After `restore`, go on, with whatever was on its way; as if no time had passed where the *clock_stood*."""
        passed_ns = 0 if clock_stood else max(0, time.time_ns() - state["time_ns"])
        kvm_state.set_clock(self._vm, state["clock_ns"] + passed_ns)
        for runner in self._runners:
            kvm_state.forgive_pause(runner.vcpu)
        for transport in self._transports:
            with transport.lock:
                transport.core.go_on()
        for chip in self._chips:
            with chip.lock:
                chip.revive()
