"""The composition root: from a configuration to a running machine, told top down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from vmm import layout, outcome
from vmm.boot import acpi, cmdline
from vmm.boot.kernel import load_initrd, load_kernel, plan_boot
from vmm.boot.plan import BootPlan, Segment
from vmm.bus import Bus
from vmm.config import MachineConfig
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.cmos import Cmos
from vmm.devices.debugcon import DebugConsole
from vmm.devices.debugexit import DebugExit
from vmm.devices.i8042 import I8042
from vmm.devices.pvpanic import PvPanic
from vmm.devices.uart16550 import Uart16550
from vmm.eventloop import EventLoop
from vmm.host.terminal import Terminal
from vmm.irq import EventFdIrqLine
from vmm.kvm import abi, cpuid, irqfd, msrs
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.outcome import Outcome
from vmm.runner import VcpuRunner, is_dead_halt
from vmm.session import Session
from vmm.virtio.blk import BlkDevice
from vmm.virtio.device import VirtioDevice
from vmm.virtio.rng import RngDevice
from vmm.virtio.transport.mmio import QUEUE_NOTIFY, MmioTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    class _Closable(Protocol):
        def close(self) -> None: ...

    _T = TypeVar("_T", bound=_Closable)

#: A panicking guest gets this long to print its last words.
_PANIC_GRACE_S = 1.0
_HALT_CHECK_MIN_S, _HALT_CHECK_MAX_S = 1.0, 60.0


class Machine:
    """One VM from power-on to its end. Made paused by `build`; all public methods are the main thread's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._config = session.config
        self._ending = threading.Lock()
        self._end: Outcome | BaseException | None = None
        self._panic: str | None = None
        self._runners: list[VcpuRunner] = []
        self._undo: list[Callable[[], None]] = []
        self.description = ""
        self._halt_check_s = _HALT_CHECK_MIN_S
        self._exits_seen = -1

    @classmethod
    def build(cls, session: Session) -> Machine:
        """Make the whole machine, ready to `start`.

        Raises:
            ConfigError, HostError: it cannot be made; nothing is left behind.
        """
        machine = cls(session)
        try:
            machine._build()
        except BaseException:
            machine.close()
            raise
        return machine

    def _build(self) -> None:
        config = self._config
        memory = self._own(GuestMemory(config.memory_bytes))
        kvm = self._own(Kvm())
        self._vm = vm = self._own(kvm.create_vm())
        # Before the irqchip: 0.1 ms each instead of 7 and more (the kernel need not wait for its SRCU readers).
        if not self._session.host.complete:
            msrs.report_writes(vm, msrs.STAR, 4)
        for slot, (gpa, size, host_address) in enumerate(memory.regions):
            vm.set_memory(slot, gpa, size, host_address)
        vm.place_internals(layout.KVM_IDENTITY_MAP, layout.KVM_TSS)
        vm.create_irqchip()
        vm.create_pit()
        self._loop = self._own(EventLoop())
        self._pio = Bus("pio", self._session.devices, self._session.trace("pio"))
        self._mmio = Bus("mmio", self._session.devices, self._session.trace("mmio"))
        self._add_platform_devices(config)
        virtio = self._add_virtio_devices(memory)
        plan = self._plan_boot(acpi.build_tables(config.cpus, virtio))
        for gpa, data in plan.pieces:
            memory.write(gpa, data)
        self.description = plan.description
        self._add_vcpus(kvm, memory, plan)

    # -- devices -----------------------------------------------------------------------------------------------------

    def _add_platform_devices(self, config: MachineConfig) -> None:
        loop, pio, console = self._loop, self._pio, self._session.backends.console
        low_bytes = layout.ram_regions(config.memory_bytes)[0][1]
        reset = self._on_reset
        uart = Uart16550(self._irq(layout.IRQ_COM1), console)
        pio.attach(layout.PORT_COM1, 8, uart)
        keyboard = I8042(self._irq(layout.IRQ_KEYBOARD), reset)
        pio.attach(layout.PORT_I8042, 5, keyboard)
        pio.attach(
            layout.PORT_CMOS,
            2,
            Cmos(self._irq(layout.IRQ_RTC), loop.call_later, low_bytes, config.memory_bytes - low_bytes),
        )
        pio.attach(layout.PORT_ACPI_PM, 16, AcpiPm(self._on_power_off, reset))
        pio.attach(layout.PORT_PVPANIC, 1, PvPanic(self._on_pvpanic))
        pio.attach(layout.PORT_DEBUG_EXIT, 4, DebugExit(self._on_debug_exit))
        pio.attach(layout.PORT_DEBUG_CONSOLE, 1, DebugConsole(console))
        console.panicked = self._on_panic
        self._session.backends.on_output_drained(lambda: loop.call_soon(uart.output_drained, uart.lock))
        if self._session.backends.interactive:
            terminal = Terminal(
                0,
                loop,
                uart.lock,
                deliver=uart.receive,
                leave=lambda: self.stop("by the user"),
                ctrl_alt_del=lambda: loop.call_soon(keyboard.send_ctrl_alt_del, keyboard.lock),
                say=console.say,
            )
            uart.input_wanted = terminal.resume
            self._own(terminal)

    def _add_virtio_devices(self, memory: GuestMemory) -> list[tuple[int, int, int]]:
        """Put the virtio devices on the MMIO bus; `(gpa, size, gsi)` of each, for the DSDT."""
        backends = self._session.backends
        devices: list[VirtioDevice] = [BlkDevice(f"vd{chr(97 + i)}", disk) for i, disk in enumerate(backends.disks)]
        if backends.nets:
            from vmm.virtio.net import NetDevice

            devices += [
                NetDevice(f"eth{i}", tap, self._loop, mac=mac, mtu=tap.mtu)
                for i, (tap, mac) in enumerate(backends.nets)
            ]
        devices.append(RngDevice("rng"))
        return [self._add_virtio(device, slot, memory) for slot, device in enumerate(devices)]

    def _add_virtio(self, device: VirtioDevice, slot: int, memory: GuestMemory) -> tuple[int, int, int]:
        gpa, gsi = layout.VIRTIO_MMIO_BASE + slot * layout.VIRTIO_MMIO_STRIDE, layout.VIRTIO_GSIS[slot]
        session = self._session
        transport = MmioTransport(
            device,
            memory,
            self._irq(gsi),
            on_fault=session.say,
            trace=session.trace("virtio"),
            tally=session.devices,
        )
        self._own(transport)
        self._mmio.attach(gpa, layout.VIRTIO_MMIO_SIZE, transport)
        for index, fd in enumerate(transport.kick_fds):
            irqfd.assign_ioeventfd(self._vm, fd, gpa + QUEUE_NOTIFY, 4, index)
            if not device.own_workers:
                self._loop.watch(fd, transport.kick_callback(index), transport.lock)
        return gpa, layout.VIRTIO_MMIO_SIZE, gsi

    def _irq(self, gsi: int) -> EventFdIrqLine:
        line = self._own(EventFdIrqLine())
        irqfd.assign_irqfd(self._vm, line.fd, gsi)
        return line

    # -- kernel and processors ---------------------------------------------------------------------------------------

    def _plan_boot(self, tables: bytes) -> BootPlan:
        config = self._config
        return plan_boot(
            load_kernel(config.kernel, cache_dir=self._session.cache_dir),
            initrd=load_initrd(config.initrd) if config.initrd else None,
            cmdline=self.command_line(),
            memory_bytes=config.memory_bytes,
            protocol=config.boot,
            kaslr=config.kaslr,
            acpi=tables,
        )

    def command_line(self) -> str:
        """The kernel's command line: what pyvmm adds, then the user's, which wins."""
        config, user = self._config, f" {self._config.append} "
        added = list(self._session.assist_options)
        if config.serial != "null" and " console=" not in user:
            added.append("console=ttyS0")
        if config.disks and " root=" not in user:
            added.append(f"root=/dev/vda {'ro' if config.disks[0].readonly else 'rw'}")
        return cmdline.join(added, config.append)

    def _add_vcpus(self, kvm: Kvm, memory: GuestMemory, plan: BootPlan) -> None:
        config, session = self._config, self._session
        complete = session.host.complete
        tsc_deadline = bool(kvm.check_extension(abi.KVM_CAP_TSC_DEADLINE_TIMER))
        for index in range(config.cpus):
            vcpu = self._own(self._vm.create_vcpu(index))
            table = kvm.supported_cpuid()
            cpuid.set_topology(table, index, config.cpus, tsc_deadline=tsc_deadline)
            assist = None
            if not complete:
                from vmm.kvm.assist.vcpu import VcpuAssist

                cpuid.hide_hypercalls(table)
                cpuid.hide_cx16(table)
                assist = VcpuAssist(vcpu, memory, session.assists, session.trace("assist"))
            vcpu.set_cpuid(table)
            vcpu.set_msrs({msrs.IA32_MISC_ENABLE: msrs.MISC_ENABLE_FAST_STRINGS})  # what firmware does on Intel
            if index == 0:
                enter(vcpu, plan)
            self._runners.append(
                VcpuRunner(
                    vcpu,
                    memory,
                    pio=self._pio,
                    mmio=self._mmio,
                    on_end=self._finish,
                    assist=assist,
                    trace=session.trace("exits"),
                )
            )

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the guest run."""
        self._io = threading.Thread(target=self._serve, name="io", daemon=True)
        self._io.start()
        self._undo.append(self._stop_io)
        self._loop.call_later(_HALT_CHECK_MIN_S, self._check_halt)
        self._session.on_stop(self.stop)
        for runner in self._runners:
            runner.start()

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Until the guest ends, at most *timeout_s*.

        Raises:
            HostError: the host failed underneath the guest. Anything else is a bug of ours, raised as it was.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._end is None:
            if not self._session.sleep(None if deadline is None else deadline - time.monotonic()):
                return Outcome(outcome.TIMEOUT, f"the guest was still running after {self._config.timeout_s:g} seconds")
        if isinstance(self._end, Outcome):
            return self._end
        raise self._end

    def stop(self, by: str) -> None:
        """End the machine from outside; any thread, or a signal handler."""
        self._finish(Outcome(outcome.STOPPED, f"stopped {by}"))

    def close(self) -> None:
        """Stop the guest and free everything, in the reverse order of making. Idempotent."""
        for runner in self._runners:
            runner.stop()
        for runner in self._runners:
            for (kind, address), count in runner.exits.items():
                name = kind if kind == "assist" else f"{kind} {self._register_name(kind, address)}"
                self._session.exits[name] = self._session.exits.get(name, 0) + count
        self._runners.clear()
        while self._undo:
            self._undo.pop()()

    def _register_name(self, kind: str, address: int) -> str:
        bus = self._mmio if kind.startswith("mmio") else self._pio
        found = bus.find(address)
        return f"{found[0].name}.{found[0].register_name(found[1])}" if found else f"{address:#x} (nobody)"

    def _own(self, resource: _T) -> _T:
        self._undo.append(resource.close)
        return resource

    def _serve(self) -> None:
        try:
            self._loop.run()
        except BaseException as error:  # noqa: BLE001 - our bug: the main thread raises it again
            self._finish(error)

    def _stop_io(self) -> None:
        self._loop.stop()
        self._io.join()

    # -- ends, told from any thread ----------------------------------------------------------------------------------

    def _finish(self, end: Outcome | BaseException) -> None:
        """The first end counts, but a reset while the guest panics is its panic."""
        if self._ending.acquire(blocking=False):  # a signal handler may be here too, so nobody waits for a lock
            if isinstance(end, Outcome) and end.kind == outcome.RESET and self._panic is not None:
                end = Outcome(outcome.PANIC, self._panic)
            self._end = end
            self._session.wake()

    def _on_power_off(self) -> None:
        self._finish(Outcome(outcome.POWERED_OFF, "the guest powered off"))

    def _on_reset(self) -> None:
        self._finish(Outcome(outcome.RESET, "the guest rebooted"))

    def _on_debug_exit(self, status: int) -> None:
        self._finish(Outcome(outcome.DEBUG_EXIT, f"the guest wrote {status:#x} to the debug-exit port", status=status))

    def _on_pvpanic(self, events: int) -> None:
        if events & 1:
            self._on_panic("the guest reported a panic by pvpanic")

    def _on_panic(self, message: str) -> None:
        if self._panic is None:
            self._panic = message
            self._loop.call_later(_PANIC_GRACE_S, self._finish_panic)

    def _finish_panic(self) -> None:
        self._finish(Outcome(outcome.PANIC, self._panic or ""))

    # -- a guest that halted for good --------------------------------------------------------------------------------

    def _check_halt(self) -> None:
        """While the guest makes exits, look every second; the longer it makes none, the less often. The io thread's."""
        exits = sum(sum(runner.exits.values()) for runner in self._runners)
        quiet = exits == self._exits_seen
        self._halt_check_s = min(2 * self._halt_check_s, _HALT_CHECK_MAX_S) if quiet else _HALT_CHECK_MIN_S
        self._exits_seen = exits
        self._loop.call_later(self._halt_check_s, self._check_halt)
        if quiet:
            self._look_for_halt(iter(self._runners))

    def _look_for_halt(self, runners: Iterator[VcpuRunner]) -> None:
        """Ask one vCPU after the other, each in its own thread, whether it can ever wake; all dead is the end."""
        runner = next(runners, None)
        if runner is None:
            self._finish(Outcome(outcome.HALTED, "the guest halted all its CPUs with interrupts off"))
            return

        def look() -> None:
            if is_dead_halt(runner.vcpu):
                self._look_for_halt(runners)

        runner.in_thread(look)


def enter(vcpu: Vcpu, plan: BootPlan) -> None:
    """Put *vcpu* at the kernel's first instruction."""
    entry = plan.entry
    vcpu.fetch_registers()
    sregs, regs = vcpu.sregs, vcpu.regs
    _load_segment(sregs.cs, entry.code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        _load_segment(getattr(sregs, name), entry.data)
    _load_segment(sregs.tr, entry.task)
    sregs.ldt.unusable = 1
    sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = entry.gdt_base, entry.gdt_limit, 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = entry.cr0, entry.cr3, entry.cr4, entry.efer
    for index in range(len(regs)):
        regs[index] = 0
    regs[abi.RIP], regs[abi.RSP], regs[abi.RFLAGS] = entry.rip, entry.rsp, 2
    regs[abi.RSI], regs[abi.RBX] = entry.rsi, entry.rbx
    vcpu.store_registers()


def _load_segment(target: abi.kvm_segment, source: Segment) -> None:
    target.selector, target.base, target.limit = source.selector, source.base, source.limit
    target.type, target.s, target.db, target.l, target.g = (
        source.type,
        source.s,
        source.db,
        source.code64,
        source.granular,
    )
    target.present, target.dpl, target.unusable, target.avl = 1, 0, 0, 0
