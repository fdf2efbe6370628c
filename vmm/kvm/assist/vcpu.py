"""The assist of one vCPU: takes the exits that only an incomplete KVM makes, and does what KVM did not."""

from __future__ import annotations

from time import perf_counter

from vmm.errors import GuestMemoryError
from vmm.kvm import abi, msrs
from vmm.kvm.assist import fpu as _fpu  # noqa: F401  its rows join the table
from vmm.kvm.assist.decode import Instruction, Undecodable
from vmm.kvm.assist.instructions import Cpu, find
from vmm.kvm.assist.paging import GuestException, read_code
from vmm.kvm.assist.syscall import SyscallAssist
from vmm.kvm.exits import DebugTrap, EmulationFailure, MsrWrite, TripleFault, Unassisted
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.trace import Tally, Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.state import State

_ALL_SETS = abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS | abi.KVM_SYNC_X86_EVENTS
_EFER_LMA = msrs.EFER_LMA
_EXCEPTION_DF = 8


class VcpuAssist:
    """Handles the exits of one vCPU that only an incomplete KVM makes. The vCPU's own thread."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory, tally: Tally, trace: Trace | None = None) -> None:
        self._vcpu, self._memory = vcpu, memory
        self._tally, self._trace = tally, trace
        self._cpu = Cpu(vcpu, memory)
        self._syscall = SyscallAssist(vcpu, memory)
        self._synchronized = False

    def state(self) -> State:
        """What of the vCPU only the assist knows."""
        return self._syscall.state()

    def restore(self, state: State) -> None:
        """Go on from *state*, after everything else of the vCPU.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        self._syscall.restore(state)
        self._cpu.star = self._syscall.msr_values[msrs.STAR]

    def handle(self, event: EmulationFailure | DebugTrap | MsrWrite) -> None:
        """Do what KVM did not.

        Raises:
            Unassisted: it cannot be done; the guest is where it was.
            TripleFault: the guest's IDT cannot take the exception that is due.
        """
        started = perf_counter()
        if not self._synchronized:  # a guest that needs no assist does not pay 0.4 us of each exit for it
            self._vcpu.fetch_registers()
            self._vcpu.synchronize(_ALL_SETS)
            self._synchronized = True
        match event:
            case EmulationFailure(code):
                name = self._instruction(code)
            case DebugTrap(pc, dr6):
                name = self._debug_trap(pc, dr6)
            case MsrWrite(index, value):
                self._vcpu.reply_msr(error=not self._syscall.msr_written(index, value))
                self._cpu.star = self._syscall.msr_values[msrs.STAR]
                name = "wrmsr"
        self._tally.spend(name, perf_counter() - started)
        if self._trace:
            self._trace(f"vcpu{self._vcpu.index} {name} rip={self._vcpu.regs[abi.RIP]:#x}")

    def _debug_trap(self, pc: int, dr6: int) -> str:
        try:
            return self._syscall.trapped(pc, dr6)
        except (GuestException, GuestMemoryError):
            raise TripleFault from None  # the stack of its page-fault handler is not mapped

    def _instruction(self, code: bytes) -> str:
        vcpu, regs = self._vcpu, self._vcpu.regs
        sregs = vcpu.sregs
        if not sregs.efer & _EFER_LMA or not sregs.cs.l or sregs.ss.dpl:
            raise Unassisted(code)  # ring 3 is native; its code must never be done with ring 0's rights
        self._syscall.watch_idt()
        at = regs[abi.RIP]
        try:
            # KVM gives none of the bytes that lie in the next page, and sometimes none at all.
            ins = Instruction(code if len(code) == 15 else read_code(self._memory, sregs, at), regs)
            row = find(ins)
            regs[abi.RIP] = at + ins.length & (1 << 64) - 1
            row.handler(self._cpu, ins)
        except GuestException as exception:
            regs[abi.RIP] = at
            self._raise_exception(exception)
            return f"exception {exception.vector}"
        except (Undecodable, GuestMemoryError):
            regs[abi.RIP] = at
            raise Unassisted(code) from None
        if self._cpu.soft_interrupt is not None:
            self._raise_exception(GuestException(self._cpu.soft_interrupt))
            self._cpu.soft_interrupt = None
        vcpu.mark_dirty(abi.KVM_SYNC_X86_REGS)
        return row.name

    def _raise_exception(self, exception: GuestException) -> None:
        """Let the guest's processor take *exception* next.

        Raises:
            TripleFault: neither it nor the double fault it becomes has a gate in the IDT. `lidt` with limit 0 and
                `int3` is how Linux reboots as a last resort.
        """
        vcpu = self._vcpu
        limit = vcpu.sregs.idt.limit
        if limit < exception.vector * 16 + 15 and limit < _EXCEPTION_DF * 16 + 15:
            raise TripleFault
        events = vcpu.events
        if exception.vector < 32:
            events.exception_injected, events.exception_nr = 1, exception.vector
            events.exception_has_error_code = exception.error_code is not None
            events.exception_error_code = exception.error_code or 0
        else:
            events.interrupt_injected, events.interrupt_nr, events.interrupt_soft = 1, exception.vector, 1
        sets = abi.KVM_SYNC_X86_EVENTS
        if exception.cr2 is not None:
            vcpu.sregs.cr2 = exception.cr2
            sets |= abi.KVM_SYNC_X86_SREGS
        vcpu.mark_dirty(sets | abi.KVM_SYNC_X86_REGS)
