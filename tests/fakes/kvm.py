"""KVM below the ioctl gate: counts every request, and lets vCPUs come out of a guest that is not there, by a script.

Only the gate is replaced: `Kvm`, `Vm`, `Vcpu`, their structs and the `kvm_run` area are the real ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from vmm.kvm import abi, system
from vmm.kvm import ioctl as gate
from vmm.kvm import vcpu as vcpu_module

RUN_BYTES = 3 * 4096
_IO_DATA = 4096
#: Request number -> kernel name.
NAMES: dict[int, str] = {
    value: name
    for name, value in vars(abi).items()
    if name.startswith("KVM_") and isinstance(value, int) and value & 0xFF00 == 0xAE00
}


class FakeKvm:
    """What answers in KVM's place. *script* is what each vCPU's guest does: `(port, byte)` for each `OUT`.

    After its script a vCPU halts: `KVM_RUN` waits until it is kicked.
    """

    def __init__(self, script: list[tuple[int, int]] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        #: The arguments of `KVM_SET_CPUID2`, `(function, eax)` pairs.
        self.cpuid: list[tuple[int, int]] = []
        self.valid_regs: set[int] = set()
        self._script = script or []
        self._runs: dict[int, Iterator[tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        """In the place of `ioctl(2)`."""
        name = NAMES[request]
        with self._lock:
            self.calls[name] += 1
        target: Any = getattr(argument, "_obj", None)
        match name:
            case "KVM_GET_API_VERSION":
                return abi.KVM_API_VERSION
            case "KVM_CHECK_EXTENSION":
                return 1
            case "KVM_GET_VCPU_MMAP_SIZE":
                return RUN_BYTES
            case "KVM_CREATE_VM":
                return os.memfd_create("fake-vm")
            case "KVM_CREATE_VCPU":
                new = os.memfd_create("fake-vcpu")
                os.ftruncate(new, RUN_BYTES)
                self._runs[new] = iter(self._script)
                return new
            case "KVM_GET_SUPPORTED_CPUID":
                target.nent = 2
                target.entries[0].function, target.entries[1].function = 1, 0x4000_0001
                target.entries[1].eax = 0xFFFF_FFFF
            case "KVM_SET_CPUID2":
                self.cpuid += [(entry.function, entry.eax) for entry in target.entries[: target.nent]]
            case "KVM_SET_MSRS" | "KVM_GET_MSRS":
                return int(target.nmsrs)
            case "KVM_RUN":
                return self._run(fd)
        return 0

    def _run(self, fd: int) -> int:
        with mmap.mmap(fd, RUN_BYTES) as run:
            self.valid_regs.add(struct.unpack_from("<Q", run, abi.RUN_VALID_REGS)[0])
            step = next(self._runs[fd], None)
            if run[abi.RUN_IMMEDIATE_EXIT] or step is None:
                threading.Event().wait(0.001)
                ctypes.set_errno(errno.EINTR)
                return -1
            port, value = step
            struct.pack_into("<I", run, abi.RUN_EXIT_REASON, abi.KVM_EXIT_IO)
            struct.pack_into("<BBHIQ", run, abi.RUN_EXIT, abi.KVM_EXIT_IO_OUT, 1, port, 1, _IO_DATA)
            run[_IO_DATA] = value
            return 0


@contextlib.contextmanager
def fake_kvm(script: list[tuple[int, int]] | None = None) -> Iterator[FakeKvm]:
    """Put a `FakeKvm` behind the gate, and a file in `/dev/kvm`'s place."""
    fake = FakeKvm(script)

    def open_fake(self: system.Kvm, path: str = "/dev/kvm") -> None:
        assert path == "/dev/kvm"
        self.fd = os.memfd_create("fake-kvm")

    with (
        patch.object(system.Kvm, "__init__", open_fake),
        patch.object(system, "_supported", []),
        patch.object(gate, "raw_ioctl", fake.ioctl),
        patch.object(vcpu_module, "run_ioctl", fake.ioctl),
    ):
        yield fake


def run_machine(kernel: str, host: Any, script: list[tuple[int, int]]) -> tuple[FakeKvm, Any, str]:
    """Run a whole machine on a fake KVM until its guest ends it; the counts, the outcome, the kernel command line."""
    from vmm.config import MachineConfig
    from vmm.machine import Machine
    from vmm.session import Session

    config = MachineConfig(kernel=kernel, serial="null", engine="python")
    session = Session(config, host, say=lambda _: None, trace=lambda _: None, cache_dir=None)
    try:
        with fake_kvm(script) as fake:
            machine = Machine.build(session)
            try:
                machine.start()
                return fake, machine.wait(10), machine.command_line()
            finally:
                machine.close()
    finally:
        session.close()


def assist_modules() -> list[str]:
    """Which modules of the assist this process has imported."""
    return sorted(name for name in sys.modules if name.startswith("vmm.kvm.assist."))
