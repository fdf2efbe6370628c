"""The vCPU threads: run the guest, and decide every exit in one place."""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from vmm import outcome
from vmm.bus import Bus
from vmm.errors import assert_never
from vmm.kvm import exits
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.outcome import Outcome
from vmm.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm.assist.vcpu import VcpuAssist


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
        assist: VcpuAssist | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.vcpu = vcpu
        self._memory = memory
        self._pio, self._mmio = pio, mmio
        self._on_end = on_end
        self._assist = assist
        self._trace = trace
        self._stopping = False
        self._errands: deque[Callable[[], object]] = deque()
        self._thread = threading.Thread(target=self._main, name=f"vcpu-{vcpu.index}", daemon=True)
        #: How often the guest came out, by what for: ("out", port), ("mmio read", page), ("assist", 0), …
        self.exits: defaultdict[tuple[str, int], int] = defaultdict(int)

    def start(self) -> None:
        """Let the vCPU run."""
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end; it may be in the guest, in a device, or not started. Any thread but its own."""
        self._stopping = True
        if self._thread.ident is not None:
            while self._thread.is_alive():
                # The kick may come before the thread has bound itself to the vCPU, or between two runs: repeat it.
                self.vcpu.kick()
                self._thread.join(0.05)

    def in_thread(self, errand: Callable[[], object]) -> None:
        """Run *errand* once in the vCPU's thread, outside the guest."""
        self._errands.append(errand)
        self.vcpu.kick()

    @property
    def native_thread_id(self) -> int | None:
        """The kernel's id of the thread, once it runs."""
        return self._thread.native_id

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
                while self._errands:
                    self._errands.popleft()()
            case exits.Shutdown():
                return self._triple_fault()
            case exits.InternalError(reason):
                return self._crash(reason)
            case exits.Halted():
                return Outcome(outcome.HALTED, "the guest halted its CPU and nothing can wake it")
            case _:
                assert_never(event)
        return None

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
