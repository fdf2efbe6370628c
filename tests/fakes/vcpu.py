"""A vCPU without KVM: registers in plain memory, and what the assist asks of it, recorded."""

from __future__ import annotations

import ctypes
import struct
from typing import cast

from vmm.kvm import abi
from vmm.kvm.vcpu import Vcpu


class FakeVcpu:
    """As much of `Vcpu` as the assist uses."""

    index = 0

    def __init__(self) -> None:
        self._sync = abi.kvm_sync_regs()
        self.regs = memoryview(self._sync.regs).cast("B").cast("Q")
        self.sregs, self.events = self._sync.sregs, self._sync.events
        self.sregs.efer = 0xD01
        self.sregs.cr0, self.sregs.cr4 = 1 << 31 | 1 << 16 | 1, 1 << 5
        self.sregs.cs.l = 1
        self.msrs: dict[int, int] = {}
        self.fpu, self.xsave = abi.kvm_fpu(), abi.kvm_xsave(mxcsr_mask=0xFFFF)
        self.dirty = 0
        #: Where the breakpoint is; None = none, "step" = single-stepping.
        self.breakpoint: int | str | None = None

    def typed(self) -> Vcpu:
        """Itself, as the type that the assist wants."""
        return cast("Vcpu", self)

    def fill(self, data: bytes) -> None:
        """Registers and system registers from *data*, still in long mode and ring 0."""
        size = ctypes.sizeof(abi.kvm_sync_regs)
        ctypes.memmove(ctypes.addressof(self._sync), data.ljust(size, b"\0"), size)
        self.sregs.efer |= 1 << 10
        self.sregs.cs.l, self.sregs.ss.dpl = 1, 0

    def synchronize(self, sets: int) -> None:
        assert sets == 7

    def mark_dirty(self, sets: int) -> None:
        self.dirty |= sets

    def fetch_registers(self) -> None:
        return

    def store_registers(self) -> None:
        return

    def get_msrs(self, indices: tuple[int, ...]) -> list[int]:
        return [self.msrs.get(index, 0) for index in indices]

    def set_msrs(self, values: dict[int, int]) -> bool:
        if any((value >> 47) not in (0, 0x1_FFFF) for index, value in values.items() if index == 0xC000_0082):
            return False
        self.msrs.update(values)
        return True

    def reply_msr(self, *, error: bool) -> None:
        return

    def get_fpu(self) -> abi.kvm_fpu:
        return self.fpu

    def set_fpu(self, fpu: abi.kvm_fpu) -> None:
        self.fpu = fpu

    def get_xsave(self) -> abi.kvm_xsave:
        return self.xsave

    def set_xsave(self, area: abi.kvm_xsave) -> None:
        self.xsave = area

    def get_xcr0(self) -> int:
        return 7

    def xsave_component(self, bit: int) -> tuple[int, int]:
        return (256, 576) if bit == 2 else (0, 0)

    def debug(self, control: int, breakpoint_address: int | None = None) -> None:
        self.breakpoint = "step" if control & abi.KVM_GUESTDBG_SINGLESTEP else breakpoint_address
        if breakpoint_address is not None:
            struct.pack("<Q", breakpoint_address)  # it fits a debug register
