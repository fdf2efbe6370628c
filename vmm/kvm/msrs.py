"""The model-specific registers that pyvmm names, and the filter that reports writes to some of them."""

from __future__ import annotations

import ctypes

from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl
from vmm.kvm.vm import Vm

IA32_TSC = 0x10
IA32_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRINGS = 1
IA32_TSC_DEADLINE = 0x6E0
STAR = 0xC000_0081
LSTAR = 0xC000_0082
CSTAR = 0xC000_0083
SYSCALL_MASK = 0xC000_0084

EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11


def report_writes(vm: Vm, first: int, count: int) -> None:
    """Make the guest's `WRMSR` to *count* (at most 64) MSRs from *first* come out as `MsrWrite` (api.rst 4.97, 7.21).

    The host's own `Vcpu.set_msrs` is not filtered.
    """
    bitmap = ctypes.c_uint64(~((1 << count) - 1) & (1 << 64) - 1)  # 0 = filtered
    vm.enable_capability(abi.KVM_CAP_X86_USER_SPACE_MSR, abi.KVM_MSR_EXIT_REASON_FILTER)
    request = abi.kvm_msr_filter(flags=abi.KVM_MSR_FILTER_DEFAULT_ALLOW)
    entry = request.ranges[0]
    entry.flags, entry.nmsrs, entry.base = abi.KVM_MSR_FILTER_WRITE, count, first
    entry.bitmap = ctypes.addressof(bitmap)
    ioctl("KVM_X86_SET_MSR_FILTER", vm.fd, abi.KVM_X86_SET_MSR_FILTER, request)
