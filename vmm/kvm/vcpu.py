"""A vCPU: running it, kicking it, and its registers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterable

from vmm.errors import KvmError
from vmm.kvm import abi, exits
from vmm.kvm.ioctl import ioctl, on_signal, run_ioctl

#: The signal that gets a vCPU out of the guest.
KICK_SIGNAL = signal.SIGRTMIN
on_signal(KICK_SIGNAL)

_REASON_IO = struct.Struct("<I20xBBHIQ")  # exit_reason; at RUN_EXIT direction, size, port, count, data_offset
# Looked up for every exit, so bound once.
_unpack_exit = _REASON_IO.unpack_from
_KVM_RUN, _EXIT_REASON = abi.KVM_RUN, abi.RUN_EXIT_REASON
_EXIT_IO, _EXIT_IO_OUT = abi.KVM_EXIT_IO, abi.KVM_EXIT_IO_OUT
_PORT_VALUES = {2: struct.Struct("<H"), 4: struct.Struct("<I")}
_MMIO = struct.Struct("<Q8sIB")  # phys_addr, data, len, is_write
_INTERNAL = struct.Struct("<II")  # suberror, ndata
_INSTRUCTION = struct.Struct("<QB15s")  # flags, insn_size, insn_bytes
_MSR = struct.Struct("<B7xIIQ")  # error, reason, index, data
_DEBUG = struct.Struct("<IIQQQ")  # exception, pad, pc, dr6, dr7
_BITMAP_AT = (abi.RUN_SYNC_REGS + abi.kvm_sync_regs.sregs.offset + abi.kvm_sregs.interrupt_bitmap.offset) // 8
_NO_INTERRUPTS = memoryview(bytes(32)).cast("Q")


def _enter_by_ioctl(fd: int, _: mmap.mmap) -> Callable[[], int]:
    return lambda: ctypes.get_errno() if run_ioctl(fd, _KVM_RUN, 0) < 0 else 0


class Vcpu:
    """An open vCPU file descriptor and its shared `kvm_run` area.

    All methods but `kick` belong to the vCPU's own thread once it runs. `regs` and `sregs` are windows into `kvm_run`
    (KVM api.rst, KVM_CAP_SYNC_REGS): current after a `run` for which `synchronize` asked for them, and taken back by
    the next `run` if `mark_dirty` said so.
    """

    def __init__(self, fd: int, index: int, mmap_bytes: int) -> None:
        self.fd, self.index = fd, index
        self._run = mmap.mmap(fd, mmap_bytes)
        self._view = memoryview(self._run)
        self._words = self._view.cast("Q")
        self._port_data = 0  # where in kvm_run the data of the present port exit are
        #: General registers, RIP and RFLAGS, indexed by `abi.RAX` … `abi.RFLAGS`.
        self.regs = self._words[abi.RUN_SYNC_REGS // 8 : abi.RUN_SYNC_REGS // 8 + 18]
        self._sync = abi.kvm_sync_regs.from_buffer(self._run, abi.RUN_SYNC_REGS)
        self.sregs = self._sync.sregs
        self.events = self._sync.events
        self.enter_by(_enter_by_ioctl)
        self._port_read, self._port_write = exits.PortRead(), exits.PortWrite()
        self._mmio_read, self._mmio_write = exits.MmioRead(), exits.MmioWrite()
        self._thread: int | None = None
        self._cpuid = abi.kvm_cpuid2()

    # -- running -----------------------------------------------------------------------------------------------------

    def bind_to_thread(self) -> None:
        """Make the calling thread this vCPU's: the one that `kick` signals."""
        self._thread = threading.get_ident()

    def enter_by(self, make: Callable[[int, mmap.mmap], Callable[[], int]]) -> None:
        """Let what *make* gives, for the vCPU's file descriptor and `kvm_run`, do `KVM_RUN` from now on.

        It returns 0 at an exit, or the errno.
        """
        self._enter = self._usual = make(self.fd, self._run)

    def call_at_exit(self, callback: Callable[[], None]) -> None:
        """Call *callback* at the next exit, those that `enter_by` would not tell of included; once. A kick is none.

        A later call replaces *callback*.
        """
        enter = _enter_by_ioctl(self.fd, self._run)

        def once() -> int:
            error = enter()
            if not error:
                self._enter = self._usual
                callback()
            return error

        self._enter = once

    def kick(self) -> None:
        """Get the vCPU out of the guest soon, whatever it does; any thread, before or during `run`."""
        self._view[abi.RUN_IMMEDIATE_EXIT] = 1
        if self._thread is not None:
            signal.pthread_kill(self._thread, KICK_SIGNAL)

    def run(self) -> exits.VcpuExit:
        """Run the guest until it needs something.

        Raises:
            KvmError: `KVM_RUN` itself failed.
        """
        error = self._enter()
        if error:
            return self._interrupted(error)
        # One look for the reason and for what the commonest exit comes with: every tenth of a microsecond counts here.
        reason, direction, size, port, count, offset = _unpack_exit(self._view, _EXIT_REASON)
        if reason == _EXIT_IO:
            if direction == _EXIT_IO_OUT:
                write = self._port_write
                write.port, write.size, write.data = port, size, self._run[offset : offset + size * count]
                return write
            self._port_data = offset
            read = self._port_read
            read.port, read.size, read.count = port, size, count
            return read
        if reason == abi.KVM_EXIT_MMIO:
            return self._mmio_exit()
        return self._rare_exit(reason)

    def _mmio_exit(self) -> exits.VcpuExit:
        gpa, data, size, is_write = _MMIO.unpack_from(self._view, abi.RUN_EXIT)
        if is_write:
            write = self._mmio_write
            write.gpa, write.size, write.value = gpa, size, int.from_bytes(data[:size], "little")
            return write
        read = self._mmio_read
        read.gpa, read.size = gpa, size
        return read

    def _interrupted(self, error: int) -> exits.VcpuExit:
        # EINTR: a kick. EAGAIN: an application processor before its SIPI. Between here and the next KVM_RUN a second
        # kick sets immediate_exit anew; one whose signal comes after it was cleared costs one more EINTR.
        if error == errno.EINTR:
            self._view[abi.RUN_IMMEDIATE_EXIT] = 0
        elif error != errno.EAGAIN:
            raise KvmError("KVM_RUN", error)
        return exits.INTERRUPTED

    def _rare_exit(self, reason: int) -> exits.VcpuExit:
        if reason == abi.KVM_EXIT_INTERNAL_ERROR:
            return self._internal_error()
        if reason == abi.KVM_EXIT_DEBUG:
            _, _, pc, dr6, _ = _DEBUG.unpack_from(self._view, abi.RUN_EXIT)
            return exits.DebugTrap(pc, dr6)
        if reason == abi.KVM_EXIT_X86_WRMSR:
            _, _, index, value = _MSR.unpack_from(self._view, abi.RUN_EXIT)
            return exits.MsrWrite(index, value)
        if reason == abi.KVM_EXIT_SHUTDOWN:
            return exits.SHUTDOWN
        if reason == abi.KVM_EXIT_HLT:
            return exits.HALTED
        if reason in (abi.KVM_EXIT_INTR, abi.KVM_EXIT_IRQ_WINDOW_OPEN):
            return exits.INTERRUPTED
        if reason == abi.KVM_EXIT_FAIL_ENTRY:
            (code,) = struct.unpack_from("<Q", self._view, abi.RUN_EXIT)
            return exits.InternalError(f"the processor refused to enter the guest (KVM_EXIT_FAIL_ENTRY, {code:#x})")
        return exits.InternalError(f"KVM exit {reason} that pyvmm did not ask for")

    def _internal_error(self) -> exits.VcpuExit:
        suberror, words = _INTERNAL.unpack_from(self._view, abi.RUN_EXIT)
        if suberror != abi.KVM_INTERNAL_ERROR_EMULATION:
            return exits.InternalError(f"KVM internal error, suberror {suberror}")
        flags, size, code = _INSTRUCTION.unpack_from(self._view, abi.RUN_EXIT + 8)
        has_code = words >= 3 and flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        return exits.EmulationFailure(code[: min(size, 15)] if has_code else b"")

    # -- answers -----------------------------------------------------------------------------------------------------

    def reply_port(self, value: int, item: int = 0) -> None:
        """Answer a `PortRead`: *value* for its *item*-th of `count` items."""
        size = self._port_read.size
        if size == 1:
            self._view[self._port_data + item] = value
        else:
            _PORT_VALUES[size].pack_into(self._view, self._port_data + item * size, value)

    def reply_mmio(self, value: int) -> None:
        """Answer a `MmioRead`."""
        struct.pack_into("<Q", self._view, abi.RUN_EXIT + 8, value)

    def reply_msr(self, *, error: bool) -> None:
        """Answer a `MsrWrite`: done, or with #GP."""
        self._view[abi.RUN_EXIT] = error

    # -- registers ---------------------------------------------------------------------------------------------------

    def synchronize(self, sets: int) -> None:
        """From the next `run` on, bring *sets* (`KVM_SYNC_X86_*`) along with every exit."""
        self._words[abi.RUN_VALID_REGS // 8] = sets

    def mark_dirty(self, sets: int) -> None:
        """Let the next `run` load *sets* from `regs`, `sregs`, `events` first."""
        if sets & abi.KVM_SYNC_X86_SREGS:
            # KVM adds to this bitmap what is being injected at an exit, never takes any of it away, and would inject
            # all of it again. What is still to be injected it knows without.
            self._words[_BITMAP_AT : _BITMAP_AT + len(_NO_INTERRUPTS)] = _NO_INTERRUPTS
        self._words[abi.RUN_DIRTY_REGS // 8] |= sets

    def fetch_registers(self) -> None:
        """Make `regs`, `sregs` and `events` current by ioctls: for reports, at any time in the vCPU's own thread."""
        ioctl("KVM_GET_REGS", self.fd, abi.KVM_GET_REGS, self._sync.regs)
        ioctl("KVM_GET_SREGS", self.fd, abi.KVM_GET_SREGS, self._sync.sregs)
        ioctl("KVM_GET_VCPU_EVENTS", self.fd, abi.KVM_GET_VCPU_EVENTS, self._sync.events)

    def store_registers(self) -> None:
        """Load `regs` and `sregs` into the vCPU now."""
        ioctl("KVM_SET_SREGS", self.fd, abi.KVM_SET_SREGS, self._sync.sregs)
        ioctl("KVM_SET_REGS", self.fd, abi.KVM_SET_REGS, self._sync.regs)

    def set_cpuid(self, table: abi.kvm_cpuid2) -> None:
        """What the guest's CPUID says (KVM api.rst 4.61)."""
        self._cpuid = table
        ioctl("KVM_SET_CPUID2", self.fd, abi.KVM_SET_CPUID2, table)

    @property
    def cpuid(self) -> bytes:
        """What was last given to `set_cpuid`."""
        return bytes(self._cpuid)[: 8 + ctypes.sizeof(abi.kvm_cpuid_entry2) * self._cpuid.nent]

    def get_msrs(self, indices: Iterable[int]) -> list[int]:
        """The values of the MSRs *indices*, at most `abi.MSRS_PER_CALL`.

        Raises:
            KvmError: KVM does not know one of them.
        """
        request = abi.kvm_msrs()
        for entry, index in zip(request.entries, indices, strict=False):
            entry.index = index
            request.nmsrs += 1
        if ioctl("KVM_GET_MSRS", self.fd, abi.KVM_GET_MSRS, request) != request.nmsrs:
            raise KvmError("KVM_GET_MSRS", errno.EINVAL)
        return [int(entry.data) for entry in request.entries[: request.nmsrs]]

    def set_msrs(self, values: dict[int, int]) -> bool:
        """Set MSRs past any filter, at most `abi.MSRS_PER_CALL`; whether KVM took them all."""
        request = abi.kvm_msrs(nmsrs=len(values))
        for entry, (index, value) in zip(request.entries, values.items(), strict=False):
            entry.index, entry.data = index, value
        return ioctl("KVM_SET_MSRS", self.fd, abi.KVM_SET_MSRS, request) == len(values)

    def get_fpu(self) -> abi.kvm_fpu:
        """x87 and SSE state, without MXCSR."""
        fpu = abi.kvm_fpu()
        ioctl("KVM_GET_FPU", self.fd, abi.KVM_GET_FPU, fpu)
        return fpu

    def set_fpu(self, fpu: abi.kvm_fpu) -> None:
        """Load x87 and SSE state, without MXCSR."""
        ioctl("KVM_SET_FPU", self.fd, abi.KVM_SET_FPU, fpu)

    def get_xsave(self) -> abi.kvm_xsave:
        """All floating-point and vector state; MXCSR is only here (`KVM_GET_FPU` leaves its field alone)."""
        area = abi.kvm_xsave()
        ioctl("KVM_GET_XSAVE", self.fd, abi.KVM_GET_XSAVE, area)
        return area

    def set_xsave(self, area: abi.kvm_xsave) -> None:
        """Load the components of *area* that its `xstate_bv` names."""
        ioctl("KVM_SET_XSAVE", self.fd, abi.KVM_SET_XSAVE, area)

    def xsave_component(self, bit: int) -> tuple[int, int]:
        """Size and offset, in bytes, of state component *bit* (from 2 on) in the standard format (CPUID leaf 0xD).

        (0, 0) if there is none, or none that `get_xsave` could give.
        """
        for entry in self._cpuid.entries[: self._cpuid.nent]:
            if entry.function == 0xD and entry.index == bit and entry.ebx + entry.eax <= ctypes.sizeof(abi.kvm_xsave):
                return entry.eax, entry.ebx
        return 0, 0

    def get_xcr0(self) -> int:
        """The state components that the guest has enabled (KVM api.rst, KVM_GET_XCRS)."""
        registers = abi.kvm_xcrs()
        ioctl("KVM_GET_XCRS", self.fd, abi.KVM_GET_XCRS, registers)
        return int(registers.xcrs[0].value)

    def get_mp_state(self) -> int:
        """`KVM_MP_STATE_*`: whether the vCPU runs, halts, or waits for its SIPI."""
        state = ctypes.c_uint32()
        ioctl("KVM_GET_MP_STATE", self.fd, abi.KVM_GET_MP_STATE, state)
        return int(state.value)

    def set_mp_state(self, state: int) -> None:
        """Set `KVM_MP_STATE_*`."""
        ioctl("KVM_SET_MP_STATE", self.fd, abi.KVM_SET_MP_STATE, ctypes.c_uint32(state))

    def debug(self, control: int, breakpoint_address: int | None = None) -> None:
        """`KVM_SET_GUEST_DEBUG` with *control* flags and perhaps one execution breakpoint (in DR0)."""
        request = abi.kvm_guest_debug(control=control)
        if breakpoint_address is not None:
            request.debugreg[0] = breakpoint_address
            request.debugreg[7] = 0x402  # G0: globally enabled, execute, length 1; bit 10 is always set
        ioctl("KVM_SET_GUEST_DEBUG", self.fd, abi.KVM_SET_GUEST_DEBUG, request)

    def close(self) -> None:
        """Unmap `kvm_run` and drop the vCPU; not while its thread runs."""
        del self._enter, self._usual, self.sregs, self.events, self._sync
        self.regs.release()
        self._words.release()
        self._view.release()
        os.close(self.fd)
        try:  # noqa: SIM105  contextlib costs start-up time
            self._run.close()
        except BufferError:
            pass  # a traceback still holds the registers: the area goes when it does
