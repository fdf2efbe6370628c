"""A guest that halted for good: with the in-kernel irqchip `HLT` is no exit, so it must be looked for."""

from __future__ import annotations

from vmm.kvm import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm.eventloop import EventLoop
    from vmm.kvm.vcpu import Vcpu
    from vmm.runner import VcpuRunner

#: The first pause between two looks, and the last.
_MIN_S, _MAX_S = 1.0, 8.0
_RFLAGS_IF = 1 << 9


class HaltWatch:
    """Calls *on_halt* once all of *runners* wait for what cannot come.

    While the guest makes *exits* (how many so far) it does not look; once it makes none it does, at ever longer
    pauses, and after the longest no more until the next exit: an idle guest wakes nobody. So a guest that halts for
    good without any exit before, after a long rest, is not noticed. The io thread's.
    """

    def __init__(
        self, loop: EventLoop, runners: list[VcpuRunner], exits: Callable[[], int], on_halt: Callable[[], None]
    ) -> None:
        self._loop, self._runners, self._exits, self._on_halt = loop, runners, exits, on_halt
        self._pause_s = _MIN_S
        self._exits_seen = -1
        self._resting = False
        loop.call_later(_MIN_S, self._check)

    def _check(self) -> None:
        exits = self._exits()
        quiet = exits == self._exits_seen
        self._pause_s = 2 * self._pause_s if quiet else _MIN_S
        self._exits_seen = exits
        if quiet:
            self._look(iter(self._runners))
        if self._pause_s <= _MAX_S:
            self._loop.call_later(self._pause_s, self._check)
        else:
            self._rest()

    def _rest(self) -> None:
        self._resting = True
        for runner in self._runners:
            self._await_exit(runner)

    def _await_exit(self, runner: VcpuRunner) -> None:
        def await_exit() -> None:
            # In the vCPU's thread, so it makes no exit between the two; those since the last check are counted.
            runner.vcpu.call_at_exit(self._on_exit)
            if self._exits() != self._exits_seen:
                self._on_exit()

        runner.in_thread(await_exit)

    def _on_exit(self) -> None:
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._resting:
            self._resting = False
            self._pause_s = _MIN_S
            self._loop.call_later(_MIN_S, self._check)

    def _look(self, runners: Iterator[VcpuRunner]) -> None:
        """Ask one vCPU after the other, each in its own thread, whether it can ever wake."""
        runner = next(runners, None)
        if runner is None:
            self._on_halt()
            return

        def look() -> None:
            if is_dead_halt(runner.vcpu):
                self._look(runners)

        runner.in_thread(look)


def is_dead_halt(vcpu: Vcpu) -> bool:
    """Whether *vcpu* waits for what cannot come: halted with interrupts off, or never started. In its own thread."""
    state = vcpu.get_mp_state()
    if state in (abi.KVM_MP_STATE_UNINITIALIZED, abi.KVM_MP_STATE_INIT_RECEIVED):
        return True
    if state != abi.KVM_MP_STATE_HALTED:
        return False
    vcpu.fetch_registers()
    return not vcpu.regs[abi.RFLAGS] & _RFLAGS_IF and not vcpu.events.nmi_pending
