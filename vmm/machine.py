"""The composition root: from a configuration to a running machine, told top down."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from vmm import layout, outcome
from vmm.boot import acpi, cmdline
from vmm.boot.kernel import load_initrd, load_kernel, plan_boot
from vmm.bus import Bus
from vmm.config import MachineConfig
from vmm.consoles import Consoles
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.cmos import Cmos
from vmm.devices.debugcon import DebugConsole
from vmm.devices.debugexit import DebugExit
from vmm.devices.i8042 import I8042
from vmm.devices.pvpanic import PvPanic
from vmm.devices.uart16550 import Uart16550
from vmm.devices.vmgenid import GenerationId
from vmm.errors import HostError
from vmm.eventloop import EventLoop
from vmm.halt import HaltWatch
from vmm.irq import EventFdIrqLine
from vmm.kvm import irqfd, msrs
from vmm.kvm.system import Kvm
from vmm.memory import GuestMemory
from vmm.outcome import Outcome
from vmm.processors import enter, prepare
from vmm.runner import VcpuRunner, count_exits, total_exits
from vmm.session import Session
from vmm.virtio.device import VirtioDevice
from vmm.virtio.transport.mmio import QUEUE_NOTIFY, MmioTransport
from vmm.virtio_devices import blk_devices, console_device, other_devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    from vmm.native.plain import PlainRegisters
    from vmm.parts import Parts
    from vmm.regs import Chip
    from vmm.snapshot.writing import Writing
    from vmm.standstill import Standstill
    from vmm.virtio.transport.core import Reporting, Transport

    class _Closable(Protocol):
        def close(self) -> None: ...

    _T = TypeVar("_T", bound=_Closable)

#: Who holds the processors of a machine that is paused.
_PAUSE = "pause"
#: A panicking guest gets this long to print its last words.
_PANIC_GRACE_S = 1.0
#: A copy whose agent is told so has new random numbers by then. The generation id, which says the same to the kernel,
#: costs an interpreted one 30 ms that would be in the way.
_TOLD_S = 1.0


class Machine:
    """One VM from power-on to its end. Made paused by `build`; all public methods are the main thread's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._snapshot, session.snapshot = session.snapshot, None
        self._config = session.config
        self._ending = threading.Lock()
        self._end: Outcome | BaseException | None = None
        self._panic: str | None = None
        self._pio = Bus("pio", session.devices, session.trace("pio"))
        self._mmio = Bus("mmio", session.devices, session.trace("mmio"))
        self._runners: list[VcpuRunner] = []
        self._registers: PlainRegisters | None = None
        self._transports: list[Transport] = []
        #: Everything on the buses that remembers something.
        self._chips: list[Chip] = []
        self.paused = self._started = False
        self._undo: list[Callable[[], None]] = []
        self.description = ""

    @classmethod
    def build(cls, session: Session) -> Machine:
        """Make the whole machine, ready to `start`: to boot, or to go on from the session's snapshot.

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

    @staticmethod
    def make_ahead() -> None:
        """Do what comes first in any `build`, for the next one in this process.

        Raises:
            HostError: it cannot be done.
        """
        kvm = Kvm()
        try:
            kvm.make_ahead()
        finally:
            kvm.close()

    def _build(self) -> None:
        config = self._config
        snapshot = self._snapshot
        self._memory = memory = self._own(snapshot.map() if snapshot else GuestMemory(config.memory_bytes))
        self._kvm = kvm = self._own(Kvm())
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
        self._consoles = self._own(
            Consoles(self._session, self._loop, self.press_ctrl_alt_del, lambda: self.stop("by the user"))
        )
        self._add_platform_devices(config)
        self._generation = GenerationId(memory, self._irq(layout.IRQ_GENERATION))
        self._disks = blk_devices(self._session, self._loop, self._on_disk_stalled)
        self._console = console_device(self._session)
        devices = [*self._disks, *other_devices(self._session, self._loop), *([self._console] if self._console else [])]
        connect = self._connect_by_pci if config.transport == "pci" else self._connect_by_mmio
        tables = connect(devices, memory)
        self._add_vcpus(kvm, memory)
        if snapshot:
            self.description = f"goes on from {snapshot.path}"
            snapshot.used_by(self._parts().restore)
        else:
            self._generation.renew()
            self._load(tables(), memory)

    # -- devices -----------------------------------------------------------------------------------------------------

    def _add_platform_devices(self, config: MachineConfig) -> None:
        loop, pio, backends = self._loop, self._pio, self._session.backends
        low_bytes = layout.ram_regions(config.memory_bytes)[0][1]
        reset = self._on_reset
        uart = Uart16550(self._irq(layout.IRQ_COM1), backends.serial)
        pio.attach(layout.PORT_COM1, 8, uart)
        self._keyboard = I8042(self._irq(layout.IRQ_KEYBOARD), reset)
        pio.attach(layout.PORT_I8042, 5, self._keyboard)
        cmos = Cmos(self._irq(layout.IRQ_RTC), loop.call_later, low_bytes, config.memory_bytes - low_bytes)
        pio.attach(layout.PORT_CMOS, 2, cmos)
        power = AcpiPm(self._on_power_off, reset)
        pio.attach(layout.PORT_ACPI_PM, 16, power)
        self._chips += [uart, self._keyboard, cmos, power]
        pio.attach(layout.PORT_PVPANIC, 1, PvPanic(self._on_pvpanic))
        pio.attach(layout.PORT_DEBUG_EXIT, 4, DebugExit(self._on_debug_exit))
        pio.attach(layout.PORT_DEBUG_CONSOLE, 1, DebugConsole(backends.serial))
        backends.serial.panicked = backends.console.panicked = self._on_panic
        self._consoles.add_serial(uart)

    def _connect_by_mmio(self, devices: list[VirtioDevice], memory: GuestMemory) -> Callable[[], bytes]:
        """Put *devices* on the MMIO bus; what makes the ACPI tables that tell of them."""
        resources = []
        for slot, device in enumerate(devices):
            gpa, gsi = layout.VIRTIO_MMIO_BASE + slot * layout.VIRTIO_MMIO_STRIDE, layout.VIRTIO_GSIS[slot]
            transport = MmioTransport(device, memory, self._irq(gsi), **self._reporting())
            self._mmio.attach(gpa, layout.VIRTIO_MMIO_SIZE, transport)
            for index, fd in enumerate(transport.kick_fds):
                irqfd.assign_ioeventfd(self._vm, fd, gpa + QUEUE_NOTIFY, 4, index)
            self._adopt(transport)
            resources.append((gpa, layout.VIRTIO_MMIO_SIZE, gsi))
        return lambda: acpi.build_tables(self._config.cpus, resources)

    def _connect_by_pci(self, devices: list[VirtioDevice], memory: GuestMemory) -> Callable[[], bytes]:
        """Put *devices* on a PCI bus; what makes the ACPI tables that tell of it."""
        from vmm.pci import PciRoot

        root = PciRoot(self._vm, self._pio, self._mmio, memory)
        self._chips.append(root.ports)
        for device in devices:
            self._adopt(root.plug(device, self._loop, **self._reporting()))
        return lambda: acpi.build_tables(self._config.cpus, [], (root.windows, root.lines))

    def _reporting(self) -> Reporting:
        return {"on_fault": self._session.say, "trace": self._session.trace("virtio"), "tally": self._session.devices}

    def _adopt(self, transport: Transport) -> None:
        """Close *transport* at the end, and serve its kicks unless its device does."""
        self._own(transport)
        self._transports.append(transport)
        self._chips.append(transport)
        if self._console is not None and transport.device is self._console:
            self._consoles.add_virtio(self._console, transport.lock)
        if not transport.device.own_workers:
            for index, fd in enumerate(transport.kick_fds):
                self._loop.watch(fd, transport.kick_callback(index), transport.lock)

    def _irq(self, gsi: int) -> EventFdIrqLine:
        line = self._own(EventFdIrqLine())
        irqfd.assign_irqfd(self._vm, line.fd, gsi)
        return line

    # -- kernel and processors ---------------------------------------------------------------------------------------

    def _load(self, tables: bytes, memory: GuestMemory) -> None:
        """Bring the kernel into *memory*, and the first processor to its entry."""
        config = self._config
        plan = plan_boot(
            load_kernel(config.kernel, cache_dir=self._session.cache_dir),
            initrd=load_initrd(config.initrd) if config.initrd else None,
            cmdline=self.command_line(),
            memory_bytes=config.memory_bytes,
            protocol=config.boot,
            kaslr=config.kaslr,
            acpi=tables,
        )
        for gpa, data in plan.pieces:
            memory.write(gpa, data)
        enter(self._runners[0].vcpu, plan)
        self.description = plan.description

    def command_line(self) -> str:
        """The kernel's command line: what pyvmm adds, then the user's, which wins."""
        return cmdline.complete(self._config, self._session.assist_options)

    def _add_vcpus(self, kvm: Kvm, memory: GuestMemory) -> None:
        config, session = self._config, self._session
        trace = session.trace("exits")
        for index in range(config.cpus):
            vcpu = self._own(self._vm.create_vcpu(index))
            assist = prepare(vcpu, kvm, memory, session)
            runner = VcpuRunner(
                vcpu, memory, pio=self._pio, mmio=self._mmio, on_end=self._finish, assist=assist, trace=trace
            )
            self._runners.append(runner)
        if session.native and not config.trace & {"exits", "pio", "mmio"}:
            from vmm.native.plain import PlainRegisters

            self._registers = registers = self._own(PlainRegisters(self._pio, self._mmio))
            if registers.timer_fd >= 0:
                self._loop.watch(registers.timer_fd, registers.hand_over)
            for runner in self._runners:
                runner.vcpu.enter_by(registers.runner)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, path: str, parent: str = "", *, overlays: bool = False) -> None:
        """Write all of the machine to the file *path*; as `begin_snapshot`, and to its end."""
        file = self.begin_snapshot(path, parent, overlays=overlays)
        try:
            file.finish()
        finally:
            file.close()

    def begin_snapshot(self, path: str, parent: str = "", *, overlays: bool = False) -> Writing:
        """All of the machine, on its way to the file *path*: who calls it finishes and closes that.

        The machine stands only until its state is told, and the memory forked; what comes after needs it no more. Of
        the memory just what is not as in the snapshot *parent*, where there is one. What is on disks that are thrown
        away at the end is kept beside it, with *overlays* what is on overlays too. Any thread but the machine's own;
        who calls it keeps the machine from being closed meanwhile.

        Raises:
            ConfigError: *parent* cannot be.
            HostError: it cannot be written, or the guest has ended; what was at *path* is still there.
        """
        from vmm.snapshot.writing import Writing
        from vmm.standstill import Standstill

        standstill = Standstill(self._runners, self._loop, self._transports, running=self._started)
        file = Writing(path, self._config, self._memory, self._snapshot, parent)
        try:
            try:
                standstill.begin()
                if self._end is not None:
                    raise HostError("the guest has ended")
                file.take(self._parts().state(self._kvm), self._session.backends.disks, overlays=overlays)
            finally:
                self._end_standstill(standstill)
        except BaseException:
            file.close()
            raise
        return file

    def _end_standstill(self, standstill: Standstill) -> None:
        try:
            standstill.end()
        except BaseException as error:
            self._finish(error)  # a guest without one of its devices is none
            raise

    def _parts(self) -> Parts:
        from vmm.parts import Parts

        return Parts(self._vm, self._runners, self._transports, self._chips)

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the guest run."""
        self._started = True
        HaltWatch(self._loop, self._runners, lambda: total_exits(self._runners, self._pio, self._mmio), self._on_halt)
        if self._snapshot is not None:
            self._generation.renew()
            told = self._snapshot.told
            self._parts().revive(self._snapshot.machine, clock_stood=told)
            if told:
                self._loop.call_later(_TOLD_S, self._generation.notify)
            else:
                self._generation.notify()
        self._session.enter(self)
        for runner in self._runners:
            runner.start()
        # The guest goes first: it has enough to do until somebody serves it.
        self._io = threading.Thread(target=self._serve, name="io", daemon=True)
        self._io.start()
        self._undo.append(self._stop_io)

    def wait(self, timeout_s: float | None = None) -> Outcome:
        """Until the guest ends, at most *timeout_s*.

        Raises:
            HostError: the host failed underneath the guest. Anything else is a bug of ours, raised as it was.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._end is None:
            if not self._session.sleep(None if deadline is None else deadline - time.monotonic()):
                return Outcome(outcome.TIMEOUT, f"the guest was still running after {self._config.timeout_s:g} seconds")
        if not isinstance(self._end, Outcome):
            raise self._end
        if self._registers is not None:
            self._registers.hand_over()  # the guest's last words
        if self._end.kind == outcome.RESET and self._panic is not None:  # a reset while the guest panics is its panic
            return Outcome(outcome.PANIC, self._panic)
        return self._end

    def stop(self, by: str) -> None:
        """End the machine from outside; any thread, or a signal handler."""
        self._finish(Outcome(outcome.STOPPED, f"stopped {by}"))

    def type(self, data: bytes) -> bool:
        """Type *data* at the guest's console; False: the guest does not read now, none of it was taken. Any thread."""
        return self._consoles.type(data)

    def press_ctrl_alt_del(self) -> None:
        """Ask the guest to shut down; any thread."""
        self._loop.call_soon(self._keyboard.send_ctrl_alt_del, self._keyboard.lock)

    def pause(self, *, wait: bool = False) -> None:
        """Stop the processors until `resume`, as soon as they come out of the guest; any thread, theirs too.

        *wait* until they are out, not in a thread of the machine's own.

        Raises:
            HostError: the guest has ended meanwhile.
        """
        self.paused = True
        for runner in self._runners:
            runner.hold(_PAUSE)
        if wait:
            for runner in self._runners:
                runner.call(lambda: None)
        self._session.tell("paused")

    def resume(self) -> None:
        """Try again what failed, and let the processors go on; any thread, or a signal handler."""
        for disk in self._disks:
            disk.resume()
        self.paused = False
        for runner in self._runners:
            runner.release(_PAUSE)
        self._session.tell("resumed")

    def close(self) -> None:
        """Stop the guest and free everything, in the reverse order of making. Idempotent."""
        self._session.leave()
        for runner in self._runners:
            runner.stop()
        if self._runners:
            self._session.exits = self.count_exits()
            self._runners.clear()
        while self._undo:
            self._undo.pop()()

    def count_exits(self) -> dict[str, int]:
        """How often the guest came out of its processors, those of before a reboot too, by what for; any thread."""
        return count_exits(self._runners, self._pio, self._mmio, self._session.exits)

    def count_kvm(self) -> dict[str, int]:
        """What KVM has counted for its processors, by KVM's names; any thread."""
        from vmm.kvm.stats import vcpu_counts

        counts: dict[str, int] = {}
        for runner in self._runners:
            for name, count in vcpu_counts(runner.vcpu.fd).items():
                counts[name] = counts.get(name, 0) + count
        return counts

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
        """The first end counts."""
        if self._ending.acquire(blocking=False):  # a signal handler may be here too, so nobody waits for a lock
            self._end = end
            self._session.wake()

    def _on_power_off(self) -> None:
        self._finish(Outcome(outcome.POWERED_OFF, "the guest powered off"))

    def _on_reset(self) -> None:
        self._finish(Outcome(outcome.RESET, "the guest rebooted"))

    def _on_halt(self) -> None:
        self._finish(Outcome(outcome.HALTED, "the guest halted all its CPUs with interrupts off"))

    def _on_debug_exit(self, status: int) -> None:
        self._finish(Outcome(outcome.DEBUG_EXIT, f"the guest wrote {status:#x} to the debug-exit port", status=status))

    def _on_pvpanic(self, events: int) -> None:
        if events & 1:
            self._on_panic("the guest reported a panic by pvpanic")

    def _on_disk_stalled(self, why: str) -> None:
        self.pause()
        self._session.say(f"{why}\n  the guest is paused; to go on, make it possible and: kill -CONT {os.getpid()}")

    def _on_panic(self, message: str) -> None:
        if self._panic is None:
            self._panic = message
            self._session.tell("panic", message=message)
            self._loop.call_later(_PANIC_GRACE_S, lambda: self._finish(Outcome(outcome.PANIC, message)))
