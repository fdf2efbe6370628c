"""A VM: its memory slots, interrupt controllers, eventfd plumbing, and vCPUs."""

from __future__ import annotations

import ctypes
import os

from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl
from vmm.kvm.vcpu import Vcpu


class Vm:
    """An open VM file descriptor. Set-up is the main thread's; the fd methods are safe from any thread."""

    def __init__(self, fd: int, vcpu_mmap_bytes: int) -> None:
        self.fd = fd
        self._vcpu_mmap_bytes = vcpu_mmap_bytes

    def set_memory(self, slot: int, gpa: int, size: int, host_address: int) -> None:
        """Map *size* bytes at *host_address* to *gpa* as memory slot *slot* (KVM api.rst 4.35); size 0 removes it.

        Cheap before `create_irqchip`, milliseconds after it.
        """
        region = abi.kvm_userspace_memory_region(
            slot=slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=host_address
        )
        ioctl("KVM_SET_USER_MEMORY_REGION", self.fd, abi.KVM_SET_USER_MEMORY_REGION, region)

    def place_internals(self, identity_map: int, tss: int) -> None:
        """Where Intel hosts keep their real-mode helpers in guest space (KVM api.rst 4.9, 4.41)."""
        address = ctypes.c_uint64(identity_map)
        ioctl("KVM_SET_IDENTITY_MAP_ADDR", self.fd, abi.KVM_SET_IDENTITY_MAP_ADDR, address)
        ioctl("KVM_SET_TSS_ADDR", self.fd, abi.KVM_SET_TSS_ADDR, tss)

    def create_irqchip(self) -> None:
        """PIC, IO-APIC and local APICs in the kernel; `create_pit` after it."""
        ioctl("KVM_CREATE_IRQCHIP", self.fd, abi.KVM_CREATE_IRQCHIP)

    def create_pit(self) -> None:
        """An i8254 in the kernel, with a port 0x61 that a guest without a speaker can read."""
        config = abi.kvm_pit_config(flags=abi.KVM_PIT_SPEAKER_DUMMY)
        ioctl("KVM_CREATE_PIT2", self.fd, abi.KVM_CREATE_PIT2, config)

    def enable_capability(self, capability: int, argument: int = 0) -> None:
        """`KVM_ENABLE_CAP` on the VM."""
        request = abi.kvm_enable_cap(cap=capability)
        request.args[0] = argument
        ioctl("KVM_ENABLE_CAP", self.fd, abi.KVM_ENABLE_CAP, request)

    def create_vcpu(self, index: int) -> Vcpu:
        """vCPU *index*, whose local APIC id is *index*."""
        fd = ioctl("KVM_CREATE_VCPU", self.fd, abi.KVM_CREATE_VCPU, index)
        os.set_inheritable(fd, False)
        return Vcpu(fd, index, self._vcpu_mmap_bytes)

    def close(self) -> None:
        """Drop the VM; it goes when its vCPUs are closed too."""
        os.close(self.fd)
