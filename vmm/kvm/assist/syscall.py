"""`SYSCALL` for a KVM that leaves it half done.

On software KVM a ring 3 `SYSCALL` sets RCX, R11, RFLAGS and RIP = LSTAR but stays in ring 3, so that the fetch at LSTAR
faults: the guest's kernel is entered at its page-fault handler instead of LSTAR. A hardware breakpoint on that handler
(it works for interpreted ring 0 code) brings every page fault here; the ones that are a SYSCALL get the state SYSCALL
should have made, the others go on.

What tells them apart (see `is_syscall`) is that a genuine SYSCALL has already cleared in RFLAGS the bits of
`MSR_SYSCALL_MASK`. Ring 3 can *jump* to LSTAR with RCX and R11 of its choosing, but cannot clear IF.
"""

from __future__ import annotations

from struct import Struct

from vmm.errors import GuestMemoryError
from vmm.kvm import abi, msrs
from vmm.kvm.assist import segments
from vmm.kvm.assist.instructions import IF, RF
from vmm.kvm.assist.paging import PF_FETCH, PF_PRESENT, PF_USER, VECTOR_PF, GuestException, read_linear, walk
from vmm.kvm.vcpu import Vcpu
from vmm.memory import GuestMemory
from vmm.state import attributes, put_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.state import State

_KEPT = ("_handler", "_handler_gpa")
_FRAME = Struct("<6Q")  # what a fault with an error code pushes in 64-bit mode
_DF = 1 << 10
_DR6_BS = 1 << 14


class FaultFrame:
    """The page-fault handler's stack frame (Intel SDM 3A §6.14.2)."""

    __slots__ = ("cs", "error_code", "rflags", "rip", "rsp", "ss")

    def __init__(  # noqa: PLR0917  the order of the stack
        self, error_code: int, rip: int, cs: int, rflags: int, rsp: int, ss: int
    ) -> None:
        self.error_code, self.rip, self.cs = error_code, rip, cs
        self.rflags, self.rsp, self.ss = rflags, rsp, ss


def is_syscall(frame: FaultFrame, cr2: int, lstar: int, mask: int, *, nx: bool) -> bool:
    """Whether this page fault is a SYSCALL that KVM left half done, not a ring 3 jump to LSTAR.

    *mask* is `MSR_SYSCALL_MASK`. Without IF in it nothing could tell the two apart, so then none is taken for one.
    """
    return (
        cr2 == frame.rip == lstar
        and frame.error_code == PF_PRESENT | PF_USER | (PF_FETCH if nx else 0)
        and frame.cs & 3 == 3
        and bool(mask & IF)
        and not frame.rflags & mask & ~RF  # every fault saves RF set
    )


def length_of_plain_start(code: bytes) -> tuple[int, bool]:
    """Length of the handler's first instruction if doing it takes no more than moving RIP, else 0.

    Also whether it is CLD. Kernels begin their handlers with ENDBR64, CLAC, CLD or a NOP patched over one of them.
    """
    if code[:4] == b"\xf3\x0f\x1e\xfa":
        return 4, False
    if code[:1] == b"\xfc":
        return 1, True
    for nop in (b"\x90", b"\x66\x90", b"\x0f\x1f\x00", b"\x0f\x1f\x40\x00"):
        if code.startswith(nop):
            return len(nop), False
    return 0, False


class SyscallAssist:
    """The breakpoint of one vCPU, and what the guest wrote to its SYSCALL MSRs. The vCPU's own thread."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        self._vcpu, self._memory = vcpu, memory
        self.msr_values = dict.fromkeys((msrs.STAR, msrs.LSTAR, msrs.CSTAR, msrs.SYSCALL_MASK), 0)
        self._handler = 0  # linear address of the guest's #PF handler; 0 = no breakpoint is set
        self._handler_gpa = 0
        self._stepping = False

    def state(self) -> State:
        """What the guest has told, and where the breakpoint is. A step over it that is under way need not be known:
        the vCPU stops at the breakpoint once more.
        """
        return attributes(self, _KEPT) | {"msrs": list(self.msr_values.values())}

    def restore(self, state: State) -> None:
        """Undo `state`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        put_back(self, _KEPT, state)
        self.msr_values = dict(zip(self.msr_values, map(int, state["msrs"]), strict=True))
        if self._handler:
            self._set_breakpoint()

    def msr_written(self, index: int, value: int) -> bool:
        """Take the guest's `WRMSR`; whether the processor would (a bad value is a #GP)."""
        if not self._vcpu.set_msrs({index: value}):
            return False
        self.msr_values[index] = value
        self.watch_idt()
        return True

    def watch_idt(self) -> None:
        """Set the breakpoint on the #PF handler of the guest's present IDT, if the guest uses SYSCALL at all.

        Called when a SYSCALL MSR is written and, since a kernel may move its IDT or change the gate afterwards, with
        every assisted instruction.
        """
        if not self.msr_values[msrs.LSTAR]:
            return
        sregs = self._vcpu.sregs
        try:
            gate = read_linear(self._memory, sregs, sregs.idt.base + VECTOR_PF * 16, 12)
            handler = int.from_bytes(gate[:2] + gate[6:12], "little")
            if handler == self._handler:
                return
            self._handler_gpa = walk(self._memory, sregs, handler)
        except (GuestException, GuestMemoryError):
            return  # an IDT that is not there yet
        self._handler = handler
        self._set_breakpoint()

    def trapped(self, pc: int, dr6: int) -> str:
        """Handle a debug trap; what it was, for the statistics.

        Raises:
            GuestException, GuestMemoryError: the guest's stack is not where it says.
        """
        if self._stepping:
            self._set_breakpoint()
            return "step"
        if pc != self._handler or dr6 & _DR6_BS:
            return "stray"
        vcpu = self._vcpu
        sregs, regs = vcpu.sregs, vcpu.regs
        frame = FaultFrame(*_FRAME.unpack(read_linear(self._memory, sregs, regs[abi.RSP], _FRAME.size)))
        lstar, mask = self.msr_values[msrs.LSTAR], self.msr_values[msrs.SYSCALL_MASK]
        if is_syscall(frame, sregs.cr2, lstar, mask, nx=bool(sregs.efer & msrs.EFER_NXE)):
            self._enter(frame)
            return "syscall"
        self._pass_by()
        return "page fault"

    def _enter(self, frame: FaultFrame) -> None:
        """Make the state of SYSCALL (Intel SDM 2B); RCX and R11 are already what it leaves there."""
        vcpu = self._vcpu
        selector = self.msr_values[msrs.STAR] >> 32 & 0xFFFC
        segments.load_code(vcpu.sregs.cs, selector, 0, long=True)
        segments.load_stack(vcpu.sregs.ss, selector + 8, 0)
        vcpu.regs[abi.RIP] = self.msr_values[msrs.LSTAR]
        vcpu.regs[abi.RSP] = frame.rsp
        vcpu.regs[abi.RFLAGS] = frame.rflags & ~(self.msr_values[msrs.SYSCALL_MASK] | RF) | 2
        vcpu.mark_dirty(abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS)

    def _pass_by(self) -> None:
        """Go on past the breakpoint. RF is not honoured, so: do the first instruction here, or step over it."""
        vcpu = self._vcpu
        length, clears_df = length_of_plain_start(self._memory.read(self._handler_gpa, 4))
        if length:
            vcpu.regs[abi.RIP] = vcpu.regs[abi.RIP] + length & (1 << 64) - 1
            if clears_df:
                vcpu.regs[abi.RFLAGS] &= ~_DF
            vcpu.mark_dirty(abi.KVM_SYNC_X86_REGS)
        else:
            self._stepping = True
            vcpu.debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)

    def _set_breakpoint(self) -> None:
        self._stepping = False
        self._vcpu.debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP, self._handler)
