"""A tiny guest for a few instructions in long mode: what the probe, the doctor and the tests try this host's KVM with.

Its memory, identity-mapped; pages from `USER` on are ring 3's, the rest are the supervisor's:

===========  =============================================================================
`GDT`        the segments of Linux: 0x10 code, 0x18 data; 0x23 code32, 0x2b data, 0x33 code
`IDT`        exception *n* goes to the stub that does `OUT EXCEPTION_PORT + n`, `HLT`
`TSS`        RSP0 is `STACK_TOP`
`TABLES`     PML4, PDPT, page directory, page table of the first 2 MiB in 4 KiB pages
`STACK_TOP`  ring 0's stack ends here; without the frame of an exception, RSP starts here too
`CODE`       ring 0's code
`USER`       ring 3's code, and the top of its stack at `USER_STACK_TOP`
===========  =============================================================================

Above the first 2 MiB, to 1 GiB, are 2 MiB pages without RAM: an access there is MMIO.
"""

from __future__ import annotations

import ctypes
import struct
from types import TracebackType
from typing import Self

from vmm import layout
from vmm.kvm import abi, msrs
from vmm.kvm.assist import segments
from vmm.kvm.exits import Interrupted, VcpuExit
from vmm.kvm.system import Kvm
from vmm.memory import GuestMemory

MEMORY_BYTES = 1 << 20
GDT, IDT, TSS, TABLES, STUBS, STACK_TOP, CODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000, 0xB000, 0xC000
USER, USER_STACK_TOP = 0x2_0000, 0x4_0000
#: Where the guest has a mapping but no RAM.
MMIO = 0x1000_0000
EXCEPTION_PORT = 0xC0
#: Code that says "arrived", and stops: `OUT REPORT_PORT`, `HLT`.
REPORT_PORT, REPORT = 0x80, b"\xe6\x80\xf4"

KERNEL_CS, KERNEL_SS, USER_CS, USER_SS, TASK = 0x10, 0x18, 0x33, 0x2B, 0x40
#: `MSR_STAR` of these segments.
STAR = (0x23 << 16 | KERNEL_CS) << 32

PRESENT, WRITE, USER_PAGE, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
_CR0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1 << 0  # PG WP NE ET MP PE
_CR4 = 1 << 10 | 1 << 9 | 1 << 5  # OSXMMEXCPT OSFXSR PAE
_EFER = msrs.EFER_LMA | msrs.EFER_LME | msrs.EFER_SCE | msrs.EFER_NXE
_SEGMENTS = struct.pack(
    "<10Q",
    *(0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF),
    *(0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0),
    *(TSS << 16 | 0x8B00_0000_0067, 0),
)


def gate(handler: int) -> bytes:
    """An interrupt gate to *handler* that ring 3 may use, for the IDT."""
    return struct.pack("<HHHHII", handler & 0xFFFF, KERNEL_CS, 0xEE00, handler >> 16 & 0xFFFF, handler >> 32, 0)


class ScratchGuest:
    """One VM of one vCPU, closed by `with`. Without an irqchip `HLT` comes out as `Halted`.

    Raises:
        KvmError: KVM refuses a step.
    """

    def __init__(self, kvm: Kvm, *, irqchip: bool = False) -> None:
        self.memory = GuestMemory(MEMORY_BYTES)
        self.vm = kvm.create_vm()
        self.vm.place_internals(layout.KVM_IDENTITY_MAP, layout.KVM_TSS)
        ((gpa, size, address),) = self.memory.regions
        self.vm.set_memory(0, gpa, size, address)
        if irqchip:
            self.vm.create_irqchip()
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(kvm.supported_cpuid())
        self._fill_memory()
        self.vcpu.fetch_registers()
        self._set_system_registers()
        self._system_registers = bytes(self.vcpu.sregs)

    def _fill_memory(self) -> None:
        write = self.memory.write
        write(GDT, _SEGMENTS)
        write(TSS, struct.pack("<IQ88xHH", 0, STACK_TOP, 0, 0x68))  # no I/O bitmap
        write(IDT, b"".join(gate(STUBS + 4 * vector) for vector in range(32)))
        write(STUBS, b"".join(bytes((0xE6, EXCEPTION_PORT + vector, 0xF4, 0)) for vector in range(32)))
        pml4, pdpt, directory, table = range(TABLES, TABLES + 0x4000, layout.PAGE)
        rights = PRESENT | WRITE | USER_PAGE
        write(pml4, struct.pack("<Q", pdpt | rights))
        write(pdpt, struct.pack("<Q", directory | rights))
        large = range(2 << 20 | PRESENT | WRITE | LARGE, 1 << 30, 2 << 20)
        write(directory, struct.pack("<512Q", table | rights, *large))
        pages = (gpa | (rights if gpa >= USER else PRESENT | WRITE) for gpa in range(0, 2 << 20, layout.PAGE))
        write(table, struct.pack("<512Q", *pages))

    def _set_system_registers(self) -> None:
        sregs = self.vcpu.sregs
        sregs.gdt.base, sregs.gdt.limit = GDT, len(_SEGMENTS) - 1
        sregs.idt.base, sregs.idt.limit = IDT, 32 * 16 - 1
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, TABLES, _CR4, _EFER
        for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ldt):
            segment.selector, segment.base, segment.unusable = 0, 0, 1
        task = sregs.tr
        task.selector, task.base, task.limit, task.type, task.s, task.present = TASK, TSS, 0x67, 11, 0, 1
        task.g = task.db = task.l = task.dpl = task.unusable = 0

    def start(self, rip: int, *, ring: int = 0, rsp: int | None = None, flags: int = 0) -> None:
        """Let the next `run` begin at *rip* in ring 0 or 3, with the system registers as they were first."""
        vcpu = self.vcpu
        ctypes.memmove(ctypes.addressof(vcpu.sregs), self._system_registers, len(self._system_registers))
        segments.load_code(vcpu.sregs.cs, USER_CS if ring else KERNEL_CS, ring, long=True)
        segments.load_stack(vcpu.sregs.ss, USER_SS if ring else KERNEL_SS, ring)
        regs = vcpu.regs
        regs[abi.RIP], regs[abi.RFLAGS] = rip, flags | 2
        regs[abi.RSP] = rsp if rsp is not None else USER_STACK_TOP if ring else STACK_TOP
        vcpu.mark_dirty(abi.KVM_SYNC_X86_REGS | abi.KVM_SYNC_X86_SREGS)

    def run(self) -> VcpuExit:
        """Why the vCPU came back; a mere interruption is gone round."""
        while isinstance(event := self.vcpu.run(), Interrupted):
            pass
        return event

    def close(self) -> None:
        """Drop the VM and its memory."""
        self.vcpu.close()
        self.vm.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
