"""`/dev/kvm` itself: what this host's KVM can do, and new VMs."""

from __future__ import annotations

import errno
import os

from vmm.errors import HostError, KvmError
from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl
from vmm.kvm.vm import Vm

#: What no VM can do without: capability number -> kernel name.
REQUIRED_CAPABILITIES = {
    abi.KVM_CAP_USER_MEMORY: "KVM_CAP_USER_MEMORY",
    abi.KVM_CAP_EXT_CPUID: "KVM_CAP_EXT_CPUID",
    abi.KVM_CAP_IRQCHIP: "KVM_CAP_IRQCHIP",
    abi.KVM_CAP_PIT2: "KVM_CAP_PIT2",
    abi.KVM_CAP_IRQFD: "KVM_CAP_IRQFD",
    abi.KVM_CAP_IOEVENTFD: "KVM_CAP_IOEVENTFD",
    abi.KVM_CAP_IMMEDIATE_EXIT: "KVM_CAP_IMMEDIATE_EXIT",
    abi.KVM_CAP_SYNC_REGS: "KVM_CAP_SYNC_REGS",
}

_FIXES = {
    errno.ENOENT: "load the module: sudo modprobe kvm_intel (or kvm_amd); in a container: --device /dev/kvm; "
    "in a VM: turn nested virtualization on",
    errno.EACCES: 'give yourself access: sudo setfacl -m u:"$USER":rw /dev/kvm (or join the group kvm)',
    errno.EPERM: "the sandbox forbids /dev/kvm: in a container, pass --device /dev/kvm",
    errno.ENODEV: "virtualization is off in the firmware, or another hypervisor holds it",
    errno.EBUSY: "another hypervisor (VirtualBox, VMware) holds the processor's virtualization: stop it",
}

#: What `supported_cpuid` has found. It is asked for by every vCPU, and takes KVM 0.3 ms.
_supported: list[bytes] = []
#: What `make_ahead` has made.
_ahead: list[Vm] = []


class Kvm:
    """An open `/dev/kvm`.

    Raises:
        HostError: it cannot be opened, or is not the KVM API 12 that every kernel since 2.6.22 has.
    """

    def __init__(self, path: str = "/dev/kvm") -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"cannot be opened: {error.strerror}", where=path, fix=_FIXES.get(error.errno or 0, "")
            ) from error
        try:
            version = ioctl("KVM_GET_API_VERSION", self.fd, abi.KVM_GET_API_VERSION)
        except KvmError as error:
            os.close(self.fd)
            raise HostError("is not KVM", where=path, fix="remove it and load the kvm module") from error
        if version != abi.KVM_API_VERSION:
            os.close(self.fd)
            raise HostError(f"has KVM API {version}, not {abi.KVM_API_VERSION}", where=path)

    def check_extension(self, capability: int) -> int:
        """What `KVM_CHECK_EXTENSION` says of *capability*: 0 if it is absent."""
        return ioctl("KVM_CHECK_EXTENSION", self.fd, abi.KVM_CHECK_EXTENSION, capability)

    def missing_capabilities(self) -> list[str]:
        """The kernel names of the required capabilities that this KVM lacks."""
        return [name for number, name in REQUIRED_CAPABILITIES.items() if not self.check_extension(number)]

    def vcpu_mmap_bytes(self) -> int:
        """Size of a vCPU's shared `kvm_run` area in bytes."""
        return ioctl("KVM_GET_VCPU_MMAP_SIZE", self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> abi.kvm_cpuid2:
        """The CPUID leaves that this KVM supports (KVM api.rst 4.46), for the caller to change."""
        if not _supported:
            table = abi.kvm_cpuid2(nent=abi.KVM_MAX_CPUID_ENTRIES)
            ioctl("KVM_GET_SUPPORTED_CPUID", self.fd, abi.KVM_GET_SUPPORTED_CPUID, table)
            _supported.append(bytes(table))
        return abi.kvm_cpuid2.from_buffer_copy(_supported[0])

    def create_vm(self) -> Vm:
        """A new VM without memory, vCPUs or interrupt controllers."""
        return _ahead.pop() if _ahead else self._create_vm()

    def make_ahead(self) -> None:
        """Make the VM that this process's next `create_vm` gives: it takes KVM 0.3 ms and more."""
        _ahead.append(self._create_vm())

    def _create_vm(self) -> Vm:
        fd = ioctl("KVM_CREATE_VM", self.fd, abi.KVM_CREATE_VM)
        os.set_inheritable(fd, False)
        return Vm(fd, self.vcpu_mmap_bytes())

    def close(self) -> None:
        """Close `/dev/kvm`; VMs made from it live on."""
        os.close(self.fd)
