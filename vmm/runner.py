"""The vCPU threads: run the guest, and decide every exit in one place."""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from vmm import outcome
from vmm.bus import Bus
from vmm.errors import HostError, assert_never
from vmm.kvm import exits
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.outcome import Outcome
from vmm.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from vmm.kvm.assist.vcpu import VcpuAssist
    from vmm.state import State

    _T = TypeVar("_T")

#: Who waits for a vCPU looks so often whether it still runs.
_LOOK_S = 0.1
#: So many places are told apart in statistics: a guest can touch any number of addresses.
PLACES_MAX = 1 << 14
_OTHERS = "others"


class VcpuRunner:
    """One vCPU and its thread. The first thing that ends the machine is told to *on_end*, from the vCPU's thread."""

    def __init__(
        self,
        vcpu: Vcpu,
        memory: GuestMemory,
        *,
        pio: Bus,
        mmio: Bus,
        on_end: Callable[[Outcome | BaseException], None],
        assist: VcpuAssist | None,
        trace: Trace | None,
    ) -> None:
        self.vcpu = vcpu
        self._memory = memory
        self._pio, self._mmio = pio, mmio
        self._on_end = on_end
        self._assist = assist
        self._trace = trace
        self._stopping = False
        self._holders: set[str] = set()
        #: Set when there is something to do for a thread that is held.
        self._called = threading.Event()
        self._errands: deque[Callable[[], object]] = deque()
        self._thread = threading.Thread(target=self._main, name=f"vcpu-{vcpu.index}", daemon=True)
        #: How often the guest came out, by what for: ("out", port), ("mmio read", gpa), ("assist", 0), …
        self.exits: defaultdict[tuple[str, int], int] = defaultdict(self._new_place)

    def start(self) -> None:
        """Let the vCPU run."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end; it may be in the guest, in a device, or not started. Any thread but its own."""
        self._stopping = True
        self._called.set()
        if self._thread.ident is not None:
            while self._thread.is_alive():
                # The kick may come before the thread has bound itself to the vCPU, or between two runs: repeat it.
                self.vcpu.kick()
                self._thread.join(0.05)

    def in_thread(self, errand: Callable[[], object]) -> None:
        """Run *errand* once in the vCPU's thread, outside the guest, where no instruction is half done."""
        self._errands.append(errand)
        self._called.set()
        self.vcpu.kick()

    def call(self, errand: Callable[[], _T]) -> _T:
        """What *errand* gives, run as by `in_thread`; here, if the vCPU does not run yet. Not the vCPU's own thread.

        Raises:
            HostError: the vCPU has ended; or *errand* raised it.
        """
        if self._thread.ident is None:
            return errand()
        results: list[_T] = []
        failures: list[HostError] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(errand())
            except HostError as error:  # for who asked: the guest goes on
                failures.append(error)
            finally:
                done.set()

        self.in_thread(run)
        while not done.wait(_LOOK_S):
            if not self._thread.is_alive():
                break
        if failures:
            raise failures[0]
        if not results:
            raise HostError("the guest has ended")
        return results[0]

    def state(self, msr_indices: Sequence[int]) -> State:
        """All of the vCPU, which is held; as `call`."""
        from vmm.kvm.state import vcpu_state

        state = self.call(lambda: vcpu_state(self.vcpu, msr_indices))
        return state | {"assist": self._assist.state() if self._assist else None}

    def restore(self, state: State) -> None:
        """Go on from *state*; before `start`.

        Raises:
            HostError: this host cannot.
            KeyError, TypeError, ValueError: it is no state of a vCPU.
        """
        from vmm.kvm.state import restore_vcpu

        if bool(state["assist"]) != bool(self._assist):
            raise HostError("is of a host with another kind of KVM")
        restore_vcpu(self.vcpu, state)
        if self._assist:
            self._assist.restore(state["assist"])

    def hold(self, holder: str) -> None:
        """Keep the vCPU out of the guest, as soon as it comes out, until *holder* releases it; any thread."""
        self._holders.add(holder)
        self.vcpu.kick()

    def release(self, holder: str) -> None:
        """Let the vCPU go on, unless somebody else holds it; any thread, or a signal handler."""
        self._holders.discard(holder)
        self._called.set()

    def _main(self) -> None:
        try:
            self.vcpu.bind_to_thread()
            run, handle = self.vcpu.run, self._handle
            while not self._stopping:
                ended = handle(run())
                if ended is not None:
                    self._on_end(ended)
                    return
        except BaseException as error:  # noqa: BLE001 - our bug or the host's error: the main thread raises it again
            self._on_end(error)

    def _new_place(self) -> int:
        if len(self.exits) >= PLACES_MAX:
            others = sum(self.exits.values())
            self.exits.clear()
            self.exits[_OTHERS, 0] = others
        return 0

    def _handle(self, event: exits.VcpuExit) -> Outcome | None:
        if self._trace:
            self._trace(f"vcpu{self.vcpu.index} {describe(event)}")
        match event:  # patterns without arguments: taking the event apart in the pattern costs half a microsecond
            case exits.PortRead():
                port, size = event.port, event.size
                self.exits["in", port] += 1
                self.vcpu.reply_port(self._pio.read(port, size))
                if event.count > 1:  # INS with REP
                    for item in range(1, event.count):
                        self.vcpu.reply_port(self._pio.read(port, size), item)
            case exits.PortWrite():
                port, size, data = event.port, event.size, event.data
                self.exits["out", port] += 1
                for start in range(0, len(data), size):
                    self._pio.write(port, size, int.from_bytes(data[start : start + size], "little"))
            case exits.MmioRead():
                self.exits["mmio read", event.gpa] += 1
                self.vcpu.reply_mmio(self._mmio.read(event.gpa, event.size) if event.size else 0)
            case exits.MmioWrite():
                self.exits["mmio write", event.gpa] += 1
                self._mmio.write(event.gpa, event.size, event.value)
            case exits.EmulationFailure() | exits.DebugTrap() | exits.MsrWrite():
                self.exits["assist", 0] += 1
                return self._assisted(event)
            case exits.Interrupted():
                self._stay_out()
            case exits.Shutdown():
                return self._triple_fault()
            case exits.InternalError(reason):
                return self._crash(reason)
            case exits.Halted():
                return Outcome(outcome.HALTED, "the guest halted its CPU and nothing can wake it")
            case _:
                assert_never(event)
        return None

    def _stay_out(self) -> None:
        """Do the errands, and more of them while the vCPU is held. KVM has finished what the last exit began."""
        while True:
            self._called.clear()  # what comes after this is seen now, or sets it again
            while self._errands:
                self._errands.popleft()()
            if not self._holders or self._stopping:
                return
            self._called.wait()

    def _assisted(self, event: exits.EmulationFailure | exits.DebugTrap | exits.MsrWrite) -> Outcome | None:
        code = event.code if isinstance(event, exits.EmulationFailure) else b""
        if self._assist is None:
            return self._crash("KVM cannot emulate an instruction of the guest", code)
        try:
            self._assist.handle(event)
        except exits.Unassisted:
            return self._crash("the guest used an instruction that neither KVM nor pyvmm's assist can do", code)
        except exits.TripleFault:
            return self._triple_fault()
        return None

    def _triple_fault(self) -> Outcome:
        """An empty IDT and an exception is how kernels reboot as a last resort; any other triple fault is a crash."""
        self.vcpu.fetch_registers()
        if self.vcpu.sregs.idt.limit == 0:
            return Outcome(outcome.RESET, "the guest rebooted by triple fault")
        return self._crash("triple fault")

    def _crash(self, reason: str, code: bytes = b"") -> Outcome:
        from vmm.kvm.report import crash_report

        return Outcome(outcome.CRASH, reason, report=crash_report(self.vcpu, self._memory, code))


def describe(event: exits.VcpuExit) -> str:
    """*event* as a line of the trace."""
    fields = (f"{name}={_text(getattr(event, name))}" for name in event.__match_args__)
    return " ".join((type(event).__name__, *fields))


def _text(value: int | bytes | str) -> str:
    if isinstance(value, bytes):
        return value.hex(" ")
    return f"{value:#x}" if isinstance(value, int) else value


def total_exits(runners: Sequence[VcpuRunner], pio: Bus, mmio: Bus) -> int:
    """How many exits the guest has made, those that C answered included; any thread."""
    answered = sum(
        int.from_bytes(plain.accesses, "little") for bus in (pio, mmio) for _, plain in bus.plain_registers()
    )
    return answered + sum(sum(runner.exits.values()) for runner in runners)


def count_exits(runners: Sequence[VcpuRunner], pio: Bus, mmio: Bus, before: dict[str, int]) -> dict[str, int]:
    """How often the guest came out of its processors, by what for, added to *before*; any thread."""
    counts = dict(before)

    def add(kind: str, address: int, count: int) -> None:
        exact = kind in ("assist", _OTHERS)
        name = kind if exact else f"{kind} {(mmio if 'mmio' in kind else pio).register_name(address)}"
        if name not in counts and len(counts) >= PLACES_MAX:
            name = _OTHERS
        counts[name] = counts.get(name, 0) + count

    for runner in runners:
        for (kind, address), count in runner.exits.copy().items():
            add(kind, address, count)
    for kind, bus in (("plain", pio), ("plain mmio", mmio)):
        for address, register in bus.plain_registers():
            count = int.from_bytes(register.accesses, "little")
            if count:
                add(kind, address, count)
    return counts
