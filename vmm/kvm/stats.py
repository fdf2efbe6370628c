"""What KVM itself has counted for a vCPU: instructions that it interpreted, halts, interrupts, page faults and more."""

from __future__ import annotations

import os
import struct

from vmm.errors import KvmError
from vmm.kvm import abi
from vmm.kvm.ioctl import ioctl

# KVM api.rst, KVM_GET_STATS_FD: a header that says where the descriptors and the data are.
_HEADER = struct.Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
_DESCRIPTOR = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; the name follows
_TYPE_MASK, _CUMULATIVE = 0xF, 0
_U64_BYTES = 8


def vcpu_counts(vcpu_fd: int) -> dict[str, int]:
    """The counts of the vCPU *vcpu_fd* since it was made, by KVM's names for them; any thread.

    Empty where KVM is too old to tell (before Linux 5.14).
    """
    try:
        fd = ioctl("KVM_GET_STATS_FD", vcpu_fd, abi.KVM_GET_STATS_FD)
    except KvmError:
        return {}
    try:
        _, name_bytes, count, _, descriptors_at, data_at = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        size = _DESCRIPTOR.size + name_bytes
        descriptors = os.pread(fd, count * size, descriptors_at)
        counts = {}
        for at in range(0, len(descriptors), size):
            flags, _, values, offset, _ = _DESCRIPTOR.unpack_from(descriptors, at)
            if flags & _TYPE_MASK == _CUMULATIVE and values == 1:
                name = descriptors[at + _DESCRIPTOR.size : at + size].rstrip(b"\0").decode("ascii")
                counts[name] = int.from_bytes(os.pread(fd, _U64_BYTES, data_at + offset), "little")
        return counts
    finally:
        os.close(fd)
